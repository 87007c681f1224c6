"""The benchmark: its grid, its guard, its file of results, its tables, and whole runs."""
