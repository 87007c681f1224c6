"""Load tests: what a client sees of the service, measured so that it cannot lie."""
