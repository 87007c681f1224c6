"""The turns of conversations: validation, history, events, the life cycle of a response."""
