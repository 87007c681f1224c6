"""Measurements of the Telegram bot."""
