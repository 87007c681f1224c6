"""Measurements of retrieval: quality over the committed corpus, and speed over many chunks."""
