"""The methods, one file per paper, behind one contract. Classes are imported when they are first used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from distillhash.methods.base import Hasher
from distillhash.methods.registry import BUILT_IN, load_hasher, make_hasher, method_class, method_names, table_name

if TYPE_CHECKING:  # for type checkers and editors; `as` says that the name is for use by others
    from distillhash.methods.agh import AGH as AGH
    from distillhash.methods.bihalf import BiHalf as BiHalf
    from distillhash.methods.ccaitq import CCAITQ as CCAITQ
    from distillhash.methods.cibhash import CIBHash as CIBHash
    from distillhash.methods.cimon import CIMON as CIMON
    from distillhash.methods.cross_contrast import CrossContrast as CrossContrast
    from distillhash.methods.crovca import CroVCA as CroVCA
    from distillhash.methods.deepbit import DeepBit as DeepBit
    from distillhash.methods.dgh import DGH as DGH
    from distillhash.methods.distillhash import DistillHash as DistillHash
    from distillhash.methods.distillhash import DistillHashInitial as DistillHashInitial
    from distillhash.methods.distillhash_contrast import DistillHashContrast as DistillHashContrast
    from distillhash.methods.dmuh import DMUH as DMUH
    from distillhash.methods.dsg import DSG as DSG
    from distillhash.methods.dsh import DSH as DSH
    from distillhash.methods.duh_eg import DUHEG as DUHEG
    from distillhash.methods.greedyhash import GreedyHash as GreedyHash
    from distillhash.methods.hashing_baseline import HashingBaseline as HashingBaseline
    from distillhash.methods.itq import ITQ as ITQ
    from distillhash.methods.lsh import LSH as LSH
    from distillhash.methods.mls3rduh import MLS3RDUH as MLS3RDUH
    from distillhash.methods.nsh import NSH as NSH
    from distillhash.methods.overview import Overview as Overview
    from distillhash.methods.pcah import PCAH as PCAH
    from distillhash.methods.pudh import PUDH as PUDH
    from distillhash.methods.sdc import SDC as SDC
    from distillhash.methods.sgh import SGH as SGH
    from distillhash.methods.sh import SH as SH
    from distillhash.methods.sph import SpH as SpH
    from distillhash.methods.ssdh import SSDH as SSDH
    from distillhash.methods.tbh import TBH as TBH
    from distillhash.methods.ugach import UGACH as UGACH
    from distillhash.methods.urph import URPH as URPH

_METHOD_OF = {place.partition(":")[2]: name for name, place in BUILT_IN.items()}

__all__ = ["Hasher", "load_hasher", "make_hasher", "method_class", "method_names", "table_name"]
__all__ += _METHOD_OF


def __getattr__(name: str) -> Any:
    if name in _METHOD_OF:
        return method_class(_METHOD_OF[name])
    raise AttributeError(f"module 'distillhash.methods' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
