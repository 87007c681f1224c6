"""The checks, one file per subject: the reader of the facts, their judge, and the decorated function."""
