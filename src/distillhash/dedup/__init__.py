"""Near-duplicates: a radius calibrated on the collection itself, groups without chaining, leaks, and a safe way to be rid of copies."""
