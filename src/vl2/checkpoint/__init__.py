"""Find, load and write checkpoints. `load_model` opens every kind; `vl2.checkpoint.policy` decides how it is held."""

from vl2.checkpoint.load import load_model
from vl2.checkpoint.policy import LoadOptions
from vl2.checkpoint.resolve import locate_checkpoint
from vl2.checkpoint.write import quantize_checkpoint, save_model

__all__ = ["LoadOptions", "load_model", "locate_checkpoint", "quantize_checkpoint", "save_model"]
