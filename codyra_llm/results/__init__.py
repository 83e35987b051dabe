"""The types of results.json, and the computation of its numbers."""
