"""The gateway's database by name: its file and its migrations, for readers that need no database library."""

FILE = "appliance.sqlite"
"""Name of the SQLite file in the gateway's data folder."""

REVISION = "0005"
"""The newest migration, which gives the tables of :mod:`appliance.store.schema`; a test compares both."""

REVISIONS = ("0001", "0002", "0003", "0004", "0005")
"""All migrations of this version, oldest first."""
