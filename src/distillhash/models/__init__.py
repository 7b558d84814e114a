"""Models: a feature extractor and a hasher, from images, vectors or sentences to codes."""

from distillhash.models.hash_model import Encoded, HashModel
from distillhash.models.image_text import CrossModalModel, PairFeatures
from distillhash.models.load import load_model

__all__ = ["CrossModalModel", "Encoded", "HashModel", "PairFeatures", "load_model"]
