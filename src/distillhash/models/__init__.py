"""Models: a feature extractor and a hasher, from images, vectors or sentences to codes."""
