"""Real llama.cpp servers before the real gateway, with tiny GGUF files that the tests write."""
