"""Text encoders, one file each: from sentences to feature vectors."""

from typing import Any

from distillhash.errors import FormatError, ParameterError
from distillhash.texts.bag_of_words import BagOfWords
from distillhash.texts.base import TextEncoder, TextVectors, Unfamiliar, unfamiliar_texts

__all__ = [
    "DEFAULT_TEXT_ENCODER",
    "TextEncoder",
    "Unfamiliar",
    "make_text_encoder",
    "text_encoder_from_config",
    "text_encoder_names",
    "unfamiliar_texts",
]

DEFAULT_TEXT_ENCODER = "minilm"


def text_encoder_names() -> dict[str, str]:
    """What can be asked for, with a line each."""
    return {
        "minilm": "384-d English sentence encoder (all-MiniLM-L6-v2) from PyPI, no download (default for texts; extra: text)",
        "hf:NAME": "any text model of transformers, from a folder or the hub (extra: hf)",
        "tfidf": "TF-IDF of the 2,000 commonest words of the training texts; tfidf:N for another number",
        "bow": "bag of words: 1 for each of those words that occurs, as in UGACH; bow:N for another number",
        "embeddings": "none: the pairs hold text vectors already",
    }


def make_text_encoder(
    name: str = DEFAULT_TEXT_ENCODER, *, device: str = "auto", allow_download: bool = True
) -> TextEncoder:
    """A text encoder by name, one of :func:`text_encoder_names`; ``tfidf`` and ``bow`` learn their vocabulary in :meth:`TextEncoder.fit`.

    Without ``allow_download`` a model must be on this machine.

    Raises:
        ParameterError: unknown name, or a number of words that is none.
        MissingDependencyError: a network whose package is not installed.
        DataError: no such model.
    """
    kind, colon, rest = name.partition(":")
    if kind in ("tfidf", "bow"):
        if colon and not (rest.isdecimal() and len(rest) < 10):
            raise ParameterError(f"{kind}:N takes a number of words, got {name!r:.80}")
        return BagOfWords(kind, int(rest)) if colon else BagOfWords(kind)
    if name == "minilm" or (kind == "hf" and rest):
        from distillhash.texts.sentence import SentenceEncoder  # here, because torch is heavy

        return SentenceEncoder(name, device=device, allow_download=allow_download)
    if name == "embeddings":
        return TextVectors()
    raise ParameterError(f"unknown text encoder {name!r}; choose one of {', '.join(text_encoder_names())}")


def text_encoder_from_config(
    config: dict[str, Any], *, device: str = "auto", allow_download: bool = False
) -> TextEncoder:
    """The text encoder that :meth:`TextEncoder.config` describes.

    A :class:`FormatError` where the description, which may be somebody else's, is not usable, or the weights found are not those the model
    was trained with. Nothing is downloaded without ``allow_download``, and no other computer is asked for a file.
    """
    name = config.get("name")
    if type(name) is not str:
        raise FormatError(f"the model's text encoder cannot be built: its name is {name!r:.80}")
    if name.startswith("hf:"):
        from distillhash.backbones.huggingface import refuse_remote_path  # here, because torch is heavy

        refuse_remote_path(name.removeprefix("hf:"))
    try:
        encoder = make_text_encoder(name, device=device, allow_download=allow_download)
        encoder.restore(config)
    except ParameterError as error:
        raise FormatError(f"the model's text encoder cannot be built: {error}") from error
    return encoder
