"""Models without memory: shapes on the meta device, to count, to plan, or to be given weights afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


@contextmanager
def shapes_only() -> Iterator[None]:
    """Make modules on the meta device, and draw no initial weights for them.

    There is nothing to draw into, and on that device PyTorch's initializers bring its compiler with them: 70 MB, and a
    second of importing.
    """
    with torch.device("meta"), _NoInitialWeights():
        yield


class _NoInitialWeights(TorchFunctionMode):
    """Leaves out what `torch.nn.init` would do."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))
