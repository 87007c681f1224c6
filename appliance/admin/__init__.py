"""The admin API: a process beside the gateway, so that no question about usage holds up a stream."""
