"""Popcount for numba kernels, and the kernels of exact Hamming search."""

from __future__ import annotations

from typing import Any

from numba import types
from numba.extending import intrinsic


@intrinsic
def popcount64(typing_context: Any, value: Any) -> Any:
    """Number of set bits of a uint64, for use inside njit functions (LLVM ctpop, one instruction); returns int64."""
    del typing_context

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        del context, signature
        return builder.ctpop(arguments[0])

    return types.int64(types.uint64), codegen
