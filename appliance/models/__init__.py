"""Getting weights onto the machine."""
