"""The memory: embeds, indexes and searches the passages of files and of past chats."""
