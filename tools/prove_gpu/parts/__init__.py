"""The parts of the proof: each runs alone under the engine's Python, and prints one line of JSON at its end."""
