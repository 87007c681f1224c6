"""Trial boots: a new generation boots once; it becomes the default after its smoke test has passed."""
