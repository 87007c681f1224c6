"""The Telegram bot before a loopback Bot API, a real gateway, a real assistant and the mock engine."""
