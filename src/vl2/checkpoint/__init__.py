"""Checkpoints: found, opened and written. `load_model` opens all; how each is held says `vl2.checkpoint.policy`."""

from vl2.checkpoint.load import load_model
from vl2.checkpoint.policy import LoadOptions
from vl2.checkpoint.resolve import locate_checkpoint
from vl2.checkpoint.write import quantize_checkpoint, save_model

__all__ = ["LoadOptions", "load_model", "locate_checkpoint", "quantize_checkpoint", "save_model"]
