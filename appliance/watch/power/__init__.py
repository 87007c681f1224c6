"""The power agent: it carries the machine through an outage on its UPS, and back."""
