"""The watchers: cards, power, backups, the dead man's switch, and the delivery of notices."""
