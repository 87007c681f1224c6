"""Programs with errors on demand, which tests start in place of the real ones."""
