"""DeepSeek-VL2 in one package: read documents, charts and screens, and locate things in images.

    import vl2
    vlm = vl2.load("nano")
    reply = vlm.chat("What is the total?", images=["receipt.png"])

Each public name is imported when it is first used, so `import vl2` is fast and does not load PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vl2.errors import UserError
from vl2.process_tuning import brief_spins

if TYPE_CHECKING:
    from vl2.batch import Batch
    from vl2.checkpoint.write import quantise_checkpoint, quantize_checkpoint
    from vl2.config import ModelConfig
    from vl2.infer.reply import Reply
    from vl2.infer.sampling import GenerateOptions
    from vl2.infer.vlm import VLM, Request, load
    from vl2.process.grounding import Box
    from vl2.process.processor import Processor
    from vl2.process.sample import Sample, collate

__version__ = "0.1.0"

_MODULE_OF = {  # public name -> the module that defines it
    "Batch": "vl2.batch",
    "Box": "vl2.process.grounding",
    "GenerateOptions": "vl2.infer.sampling",
    "ModelConfig": "vl2.config",
    "Processor": "vl2.process.processor",
    "Reply": "vl2.infer.reply",
    "Request": "vl2.infer.vlm",
    "Sample": "vl2.process.sample",
    "VLM": "vl2.infer.vlm",
    "collate": "vl2.process.sample",
    "load": "vl2.infer.vlm",
    "quantise_checkpoint": "vl2.checkpoint.write",
    "quantize_checkpoint": "vl2.checkpoint.write",
}

__all__ = [
    "VLM",
    "Batch",
    "Box",
    "GenerateOptions",
    "ModelConfig",
    "Processor",
    "Reply",
    "Request",
    "Sample",
    "UserError",
    "collate",
    "load",
    "quantise_checkpoint",
    "quantize_checkpoint",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'vl2' has no attribute {name!r}")
    with brief_spins():
        return getattr(import_module(_MODULE_OF[name]), name)
