"""Weights on disk: the released names both ways, lazy strict loading, saving, folders and hub ids."""

from vl2.weights.load import load_model
from vl2.weights.locate import locate_checkpoint
from vl2.weights.save import save_model

__all__ = ["load_model", "locate_checkpoint", "save_model"]
