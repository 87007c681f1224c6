"""The bot's database: links, chats, updates, turns and the messages of each turn."""
