"""Runners execute a model's passes `encode`, `prefill` and `decode`: plain PyTorch, CPU kernels or CUDA graphs.

`choose_runner` chooses one when a model is opened. The model does not depend on the runners.
"""

from vl2.runtime.choose import choose_runner, explain_choice, explain_on
from vl2.runtime.plain import PlainRunner
from vl2.runtime.runner import CachePool, Runner

__all__ = ["CachePool", "PlainRunner", "Runner", "choose_runner", "explain_choice", "explain_on"]
