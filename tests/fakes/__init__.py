"""Stand-ins that speak a real protocol."""
