"""The assistant's database: one truth of chats, files and memory. Every method takes the tenant."""
