"""The Telegram bot: chats of linked users through the gateway; a process of its own without an inbound port."""
