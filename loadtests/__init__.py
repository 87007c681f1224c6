"""Load tests: the service as a client measures it, with a verdict that never hides a failure."""
