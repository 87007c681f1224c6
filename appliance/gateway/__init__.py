"""The gateway: one process between clients and engines. Bytes pass through; see docs/decisions/0003."""
