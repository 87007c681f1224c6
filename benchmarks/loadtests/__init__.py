"""The load test compared with other load generators."""
