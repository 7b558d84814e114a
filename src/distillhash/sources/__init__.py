"""Where images and embeddings come from, and how bytes become pixels."""

from distillhash.files import digest
from distillhash.sources.base import BadItemError, EmbeddingSource, ImageSource, Skipped, Source
from distillhash.sources.decode import (
    MAX_PIXELS,
    decode_image,
    decode_resized,
    decode_sizes,
    decode_thumbnail,
    encode_thumbnail,
    image_format,
    image_size,
    resize_image,
    resize_images,
)
from distillhash.sources.registry import open_source, source_names

__all__ = [
    "MAX_PIXELS",
    "BadItemError",
    "EmbeddingSource",
    "ImageSource",
    "Skipped",
    "Source",
    "decode_image",
    "decode_resized",
    "decode_sizes",
    "decode_thumbnail",
    "digest",
    "encode_thumbnail",
    "image_format",
    "image_size",
    "open_source",
    "resize_image",
    "resize_images",
    "source_names",
]
