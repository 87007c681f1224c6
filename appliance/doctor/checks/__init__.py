"""The checks, one file a subject: each reads facts, judges them, and is one decorated function."""
