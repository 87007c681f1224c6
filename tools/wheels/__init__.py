"""The engine's wheel set: its lock, and the verification that it is complete and fits the GPUs."""
