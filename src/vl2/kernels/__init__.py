"""CPU kernels in C++, built without PyTorch's headers.

`load_kernels()` returns the loaded library or None. Every caller also has a plain PyTorch implementation, and tests
compare the two.
"""

from vl2.kernels.library import Library, describe_kernels, load_kernels

__all__ = ["Library", "describe_kernels", "load_kernels"]
