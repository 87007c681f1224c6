"""The options of a load test that a stall of the machine does not fail."""

STALL = ("--client-lag-ms", "5000", "--slo-ttft-p99-ms", "7000", "--slo-tpot-p99-ms", "5000")
"""Other tests stop a process for up to 5 s: the run stays valid, and its SLOs allow the same stall."""
