"""PyTorch, which training needs and the use of a trained model does not.

Where it is not installed, modules that import it from here can be imported all the same: their classes are defined, load what was
trained, and apply it. Calling anything of PyTorch is then a :class:`MissingDependencyError`.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NoReturn

from distillhash.errors import MissingDependencyError

if TYPE_CHECKING or find_spec("torch") is not None:
    import torch
    from torch import Tensor, nn
    from torch.nn import functional
else:

    class _Absent(type):
        """A class that can be a base class and a type, and has every attribute, but no instances."""

        def __getattr__(cls, name: str) -> _Absent:
            if name.startswith("__"):
                raise AttributeError(name)
            return _Absent(name, (), {})

        def __call__(cls, *_: Any, **__: Any) -> NoReturn:
            raise MissingDependencyError("training needs PyTorch; pip install 'distillhash[train]'")

    torch = nn = functional = Tensor = _Absent("torch", (), {})

__all__ = ["Tensor", "functional", "nn", "torch"]
