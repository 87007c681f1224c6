"""Web search: the tool that the model sees, SearXNG, the fetcher, and results as fenced data with citations."""
