"""The methods, one file per paper, behind one contract."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from numpy.typing import NDArray

from distillhash.errors import FormatError, ParameterError
from distillhash.methods.base import Hasher, instantiate, read_model_folder

__all__ = [
    "METHODS",
    "Hasher",
    "MethodInfo",
    "default_views",
    "load_hasher",
    "make_hasher",
    "method_class",
    "method_names",
    "uses_teacher",
]


class MethodInfo(NamedTuple):
    """A method's place in the literature, and where its class is. Modules are imported when a method is used."""

    module: str
    class_name: str
    title: str
    venue: str
    year: int
    kind: str
    uses: str = "features"
    teacher: bool = False

    def as_dict(self) -> dict[str, Any]:
        """What ``distillhash ls methods --json`` says of it."""
        return {name: value for name, value in self._asdict().items() if name not in ("module", "class_name")}


RANDOM, SHALLOW, PAIRS = "data-independent", "shallow", "pair labels"
CONTRASTIVE, GENERATIVE, SIMILARITY = "contrastive", "generative", "similarity preserving"
PSEUDO, REGULARISED, SUPERVISED = "pseudo labels", "regularised", "supervised"
VIEWS, LABELS = "features and views", "features and labels"
DEFAULT_VIEWS = 6

METHODS = {
    "agh": MethodInfo("agh", "AGH", "Hashing with Graphs", "ICML", 2011, SHALLOW),
    "bihalf": MethodInfo(
        "bihalf", "BiHalf", "Deep Unsupervised Image Hashing by Maximizing Bit Entropy", "AAAI", 2021, SIMILARITY, VIEWS
    ),
    "cibhash": MethodInfo(
        "cibhash",
        "CIBHash",
        "Unsupervised Hashing with Contrastive Information Bottleneck",
        "IJCAI",
        2021,
        CONTRASTIVE,
        VIEWS,
    ),
    "cimon": MethodInfo("cimon", "CIMON", "CIMON: Towards High-quality Hash Codes", "IJCAI", 2021, PAIRS, VIEWS),
    "crovca": MethodInfo(
        "crovca",
        "CroVCA",
        "Image Hashing via Cross-View Code Alignment in the Age of Foundation Models",
        "arXiv",
        2025,
        CONTRASTIVE,
        VIEWS,
    ),
    "deepbit": MethodInfo(
        "deepbit",
        "DeepBit",
        "Learning Compact Binary Descriptors with Unsupervised Deep Neural Networks",
        "CVPR",
        2016,
        REGULARISED,
        VIEWS,
    ),
    "dgh": MethodInfo("dgh", "DGH", "Discrete Graph Hashing", "NIPS", 2014, SHALLOW),
    "distillhash": MethodInfo(
        "distillhash",
        "DistillHash",
        "DistillHash: Unsupervised Deep Hashing by Distilling Data Pairs",
        "CVPR",
        2019,
        PAIRS,
    ),
    "distillhash-contrast": MethodInfo(
        "distillhash_contrast",
        "DistillHashContrast",
        "Distilled neighbourhoods and contrastive codes",
        "this project",
        2026,
        CONTRASTIVE,
        VIEWS,
        teacher=True,
    ),
    "distillhash-initial": MethodInfo(
        "distillhash", "DistillHashInitial", "DistillHash*: the same without distilling", "CVPR", 2019, PAIRS
    ),
    "dmuh": MethodInfo(
        "dmuh", "DMUH", "Deep Momentum Uncertainty Hashing", "Pattern Recognition", 2022, SUPERVISED, LABELS
    ),
    "dsg": MethodInfo("dsg", "DSG", "Unsupervised Deep Hashing via Distilled Smooth Guidance", "ICME", 2021, PAIRS),
    "dsh": MethodInfo("dsh", "DSH", "Density Sensitive Hashing", "IEEE Trans. Cybernetics", 2014, SHALLOW),
    "greedyhash": MethodInfo(
        "greedyhash",
        "GreedyHash",
        "Greedy Hash: Towards Fast Optimization for Accurate Hash Coding in CNN",
        "NeurIPS",
        2018,
        SIMILARITY,
        VIEWS,
    ),
    "itq": MethodInfo(
        "itq", "ITQ", "Iterative Quantization: A Procrustean Approach to Learning Binary Codes", "CVPR", 2011, SHALLOW
    ),
    "lsh": MethodInfo("lsh", "LSH", "Similarity Estimation Techniques from Rounding Algorithms", "STOC", 2002, RANDOM),
    "mls3rduh": MethodInfo(
        "mls3rduh",
        "MLS3RDUH",
        "MLS3RDUH: Deep Unsupervised Hashing via Manifold based Local Semantic Similarity Structure Reconstructing",
        "IJCAI",
        2020,
        PAIRS,
    ),
    "nsh": MethodInfo("nsh", "NSH", "Learning to Hash Naturally Sorts", "IJCAI", 2022, CONTRASTIVE, VIEWS),
    "pcah": MethodInfo(
        "pcah", "PCAH", "Semi-Supervised Hashing for Large-Scale Search (its PCA baseline)", "TPAMI", 2012, SHALLOW
    ),
    "pudh": MethodInfo(
        "pudh",
        "PUDH",
        "Unsupervised Deep Hashing With Pseudo Labels for Scalable Image Retrieval",
        "IEEE TIP",
        2018,
        PSEUDO,
    ),
    "sdc": MethodInfo(
        "sdc", "SDC", "Unsupervised Hashing with Similarity Distribution Calibration", "BMVC", 2023, SIMILARITY, VIEWS
    ),
    "sgh": MethodInfo("sgh", "SGH", "Stochastic Generative Hashing", "ICML", 2017, GENERATIVE),
    "sh": MethodInfo("sh", "SH", "Spectral Hashing", "NIPS", 2008, SHALLOW),
    "sph": MethodInfo("sph", "SpH", "Spherical Hashing", "CVPR", 2012, SHALLOW),
    "ssdh": MethodInfo("ssdh", "SSDH", "Semantic Structure-based Unsupervised Deep Hashing", "IJCAI", 2018, PAIRS),
    "tbh": MethodInfo("tbh", "TBH", "Auto-Encoding Twin-Bottleneck Hashing", "CVPR", 2020, GENERATIVE),
    "urph": MethodInfo(
        "urph", "URPH", "Unsupervised Rank-Preserving Hashing for Large-Scale Image Retrieval", "ICMR", 2019, SIMILARITY
    ),
}
"""Every method by name."""


def default_views(method: str) -> int:
    """How many augmented views of every image ``method`` learns from unless told otherwise: 6, or 0 where it uses none.

    The methods for images and texts say so themselves (``uses_views``).
    """
    return DEFAULT_VIEWS if method in METHODS and METHODS[method].uses == VIEWS else 0


def uses_teacher(method: str) -> bool:
    """Whether ``method`` learns, where it has views, from features of larger images as well."""
    return method in METHODS and METHODS[method].teacher


def method_names() -> list[str]:
    """Names of all methods, sorted."""
    return sorted(METHODS)


def method_class(method: str) -> type[Hasher]:
    """The class behind a name.

    Raises:
        ParameterError: unknown name.
    """
    if method not in METHODS:
        if method in _cross_modal().CROSS_METHODS:
            raise ParameterError(f"{method} learns from images and texts; use make_cross_hasher, or train --pairs")
        raise ParameterError(f"unknown method {method!r}; choose one of {', '.join(method_names())}")
    info = METHODS[method]
    found: type[Hasher] = getattr(import_module(f"distillhash.methods.{info.module}"), info.class_name)
    return found


def make_hasher(method: str, n_bits: int, *, seed: int = 0, **hyperparameters: Any) -> Hasher:
    """An unfitted hasher.

    Args:
        method: One of :func:`method_names`.
        n_bits: Code length.
        seed: Controls everything random in ``fit``.
        **hyperparameters: Fields of the method's class; for ``distillhash`` also ``reading`` (``paper``, ``code``,
            ``recommended``), which sets several at once and yields to those given by name.

    Raises:
        ParameterError: unknown method or hyper-parameter, or a value out of range.
    """
    return instantiate(method_class(method), n_bits, seed, hyperparameters)


def load_hasher(path: str | Path) -> Hasher:
    """Read a hasher that :meth:`Hasher.save` wrote.

    Raises:
        FormatError: the folder is absent, damaged, or of a newer format.
    """
    return hasher_from(*read_model_folder(path))


def hasher_from(config: dict[str, Any], tensors: dict[str, NDArray[Any]]) -> Hasher:
    """The fitted hasher described by the contents of a model folder."""
    try:
        parameters, method = dict(config["parameters"]), config["method"]
        make = _cross_modal().make_cross_hasher if method in _cross_modal().CROSS_METHODS else make_hasher
        hasher: Hasher = make(method, parameters.pop("n_bits"), seed=parameters.pop("seed"), **parameters)
    except (KeyError, TypeError, ParameterError) as error:
        raise FormatError(f"the model's config.json does not describe a usable hasher: {error}") from error
    return hasher.restore(config, tensors)


def _cross_modal() -> Any:
    """The registry of the methods for images and texts, which builds on this one."""
    return import_module("distillhash.methods.crossmodal_registry")
