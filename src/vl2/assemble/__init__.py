"""Start training from a language model and a SigLIP: both, and a fresh projector, become one checkpoint."""

from vl2.assemble.assemble import Assembled, assemble_checkpoint

__all__ = ["Assembled", "assemble_checkpoint"]
