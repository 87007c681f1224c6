"""The chat page: its shell, its static files, and messages as safe HTML."""
