"""The assistant: stateful responses, conversations, files and memory for OpenAI's clients; a process of its own."""
