"""Engines: their command lines, their processes and units, the probe that they work."""
