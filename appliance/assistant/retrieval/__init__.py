"""Retrieval as pure functions over passages: terms, chunks, indexes, fusion, ranking and the context block.

No module of this package has a database, a socket or a clock. The caller passes texts, vectors, times and
functions.
"""
