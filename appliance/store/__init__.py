"""What is kept: API keys and usage rows, in SQLite by default and in PostgreSQL where a URL names one."""
