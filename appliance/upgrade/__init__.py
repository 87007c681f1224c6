"""Trial boot: a new generation boots once; only a passed smoke test makes it the one that boots by itself."""
