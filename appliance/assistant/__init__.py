"""The stateful service in front of the gateway: conversations, files and memory."""
