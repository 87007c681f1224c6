"""Client programs as their pages in docs/clients set them up, against a real gateway: ``make test-clients``."""
