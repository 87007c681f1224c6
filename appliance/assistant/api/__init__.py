"""The endpoints of the assistant, one file a group."""
