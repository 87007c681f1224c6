"""Pins: how the engine's wheel set is locked, and the proof that it is complete and fits the cards."""
