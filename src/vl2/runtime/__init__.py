"""What runs a model's three passes: `encode`, `prefill` and `decode`, in PyTorch, by the CPU kernels or as CUDA graphs.

`choose_runner` takes one when a model is opened. The model itself knows of none of them.
"""

from vl2.runtime.choose import choose_runner, explain_choice, explain_on
from vl2.runtime.plain import PlainRunner
from vl2.runtime.runner import CachePool, Runner

__all__ = ["CachePool", "PlainRunner", "Runner", "choose_runner", "explain_choice", "explain_on"]
