"""Backups: a consistent copy, restic's repositories, the restore drill, and the report on all of them."""
