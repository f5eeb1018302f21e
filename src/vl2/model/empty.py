"""Build models on the meta device, which have shapes but no memory: to count, to plan, or to load weights later."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


@contextmanager
def shapes_only() -> Iterator[None]:
    """Build modules on the meta device, and draw no initial weights for them.

    Meta tensors have no values to initialize. On that device PyTorch's initializers would also import its compiler,
    which takes 70 MB and a second.
    """
    with torch.device("meta"), _NoInitialWeights():
        yield


class _NoInitialWeights(TorchFunctionMode):
    """Skip every function of `torch.nn.init` and return its tensor unchanged."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))
