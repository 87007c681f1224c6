"""Alembic's environment: :mod:`appliance.store.database` runs it on a connection that it holds."""
