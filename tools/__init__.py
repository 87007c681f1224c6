"""Tools for maintainers; never installed."""
