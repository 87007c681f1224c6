"""Model weights on this machine: download, verification, the choice for `make up`."""
