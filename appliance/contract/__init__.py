"""The contract of a site: its model, its rules, and how it is read from a file."""
