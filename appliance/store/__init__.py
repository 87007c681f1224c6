"""The database: API keys and usage records, in SQLite by default or in PostgreSQL."""
