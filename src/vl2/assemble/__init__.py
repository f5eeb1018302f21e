"""Make a checkpoint from a language model, a SigLIP encoder and a new projector, as a starting point for training."""

from vl2.assemble.assemble import Assembled, assemble_checkpoint

__all__ = ["Assembled", "assemble_checkpoint"]
