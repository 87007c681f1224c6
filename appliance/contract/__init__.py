"""The contract of a site: its model, its rules, and the reader of its files."""
