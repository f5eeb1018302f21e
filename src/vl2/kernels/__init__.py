"""CPU kernels in C++, built without PyTorch's headers. Every operation also has a plain PyTorch implementation.

`load_kernels()` gives the loaded library or None; what uses it has a plain PyTorch way beside it, and tests hold both
equal.
"""

from vl2.kernels.library import Library, describe_kernels, load_kernels

__all__ = ["Library", "describe_kernels", "load_kernels"]
