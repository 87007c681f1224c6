"""``appliance bench``: tables of throughput, latency, energy, swaps and cold starts of a running host."""
