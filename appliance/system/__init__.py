"""Files, locks, signals, ports and proxies of the machine on which a process runs."""
