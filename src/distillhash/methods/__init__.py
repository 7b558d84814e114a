"""The methods, one file per paper, behind one contract. Classes are imported when they are first used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from distillhash.methods.base import Hasher
from distillhash.methods.registry import BUILT_IN, load_hasher, make_hasher, method_class, method_names

if TYPE_CHECKING:
    from distillhash.methods.agh import AGH
    from distillhash.methods.bihalf import BiHalf
    from distillhash.methods.ccaitq import CCAITQ
    from distillhash.methods.cibhash import CIBHash
    from distillhash.methods.cimon import CIMON
    from distillhash.methods.cross_contrast import CrossContrast
    from distillhash.methods.crovca import CroVCA
    from distillhash.methods.deepbit import DeepBit
    from distillhash.methods.dgh import DGH
    from distillhash.methods.distillhash import DistillHash, DistillHashInitial
    from distillhash.methods.distillhash_contrast import DistillHashContrast
    from distillhash.methods.dmuh import DMUH
    from distillhash.methods.dsg import DSG
    from distillhash.methods.dsh import DSH
    from distillhash.methods.greedyhash import GreedyHash
    from distillhash.methods.itq import ITQ
    from distillhash.methods.lsh import LSH
    from distillhash.methods.mls3rduh import MLS3RDUH
    from distillhash.methods.nsh import NSH
    from distillhash.methods.pcah import PCAH
    from distillhash.methods.pudh import PUDH
    from distillhash.methods.sdc import SDC
    from distillhash.methods.sgh import SGH
    from distillhash.methods.sh import SH
    from distillhash.methods.sph import SpH
    from distillhash.methods.ssdh import SSDH
    from distillhash.methods.tbh import TBH
    from distillhash.methods.ugach import UGACH
    from distillhash.methods.urph import URPH

__all__ = [
    "AGH",
    "CCAITQ",
    "CIMON",
    "DGH",
    "DMUH",
    "DSG",
    "DSH",
    "ITQ",
    "LSH",
    "MLS3RDUH",
    "NSH",
    "PCAH",
    "PUDH",
    "SDC",
    "SGH",
    "SH",
    "SSDH",
    "TBH",
    "UGACH",
    "URPH",
    "BiHalf",
    "CIBHash",
    "CroVCA",
    "CrossContrast",
    "DeepBit",
    "DistillHash",
    "DistillHashContrast",
    "DistillHashInitial",
    "GreedyHash",
    "Hasher",
    "SpH",
    "load_hasher",
    "make_hasher",
    "method_class",
    "method_names",
]

_METHOD_OF = {place.partition(":")[2]: name for name, place in BUILT_IN.items()}


def __getattr__(name: str) -> Any:
    if name in _METHOD_OF:
        return method_class(_METHOD_OF[name])
    raise AttributeError(f"module 'distillhash.methods' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
