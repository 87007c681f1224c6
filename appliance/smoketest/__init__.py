"""Operating a running service."""
