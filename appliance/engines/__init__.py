"""Engines: how they are started (argv), kept (control) and known to work (health)."""
