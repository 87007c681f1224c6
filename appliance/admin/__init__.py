"""The admin API: a process of its own, so that a query of usage delays no stream of the gateway."""
