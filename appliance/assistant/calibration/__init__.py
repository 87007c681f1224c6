"""Labelled requests and documents: they measure a search, and fit the thresholds of an embedder."""
