"""Our load test beside others."""
