"""Retrieval metrics of codes: exact over ties, and free of torch."""
