"""The built-in model, made to talk until it is told to stop, whatever it was trained on."""

from __future__ import annotations

import torch

import vl2
from vl2.infer.vlm import VLM


@torch.no_grad()
def load_talkative(dtype: str = "float32", device: str = "cpu") -> VLM:
    """Load `nano` with a head that never chooses the end of an answer."""
    vlm = vl2.load("nano", dtype=dtype, device=device)
    # The end gets the logit of the begin, which training has pushed down wherever something was to be said.
    weight = vlm.model.language.lm_head.weight
    weight[vlm.processor.tokenizer.eos_id] = weight[vlm.processor.tokenizer.bos_id]
    return vlm
