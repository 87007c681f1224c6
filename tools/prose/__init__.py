"""The prose check: every text of the repository against the rules of plain technical English."""
