"""Build a model from counterparts of a model's modules: the same weights, buffers and hooks, run by other code."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

# Returns the class that runs a module of a class inside a parent of a class, or None to keep the module itself.
FindCounterpart = Callable[[type[nn.Module], type[nn.Module] | None], type[nn.Module] | None]


def counterpart_of(module: nn.Module, find: FindCounterpart, *, parent: type[nn.Module] | None = None) -> nn.Module:
    """Return the counterpart of a module and its children, or the module itself if `find` returns None.

    The given module is unchanged. Both share their weights, and the modules that have no counterpart, such as adapters.
    """
    kind = find(type(module), parent)
    if kind is None:
        return module
    counterpart: nn.Module = kind.__new__(kind)
    # Share the module's dictionaries of parameters, buffers and hooks, so that a cast changes both modules.
    counterpart.__dict__ = dict(module.__dict__)
    counterpart.__dict__["_modules"] = {
        name: None if child is None else counterpart_of(child, find, parent=type(module))
        for name, child in module._modules.items()
    }
    return counterpart
