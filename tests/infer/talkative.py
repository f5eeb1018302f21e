"""The built-in model, made to talk until it is told to stop, whatever it was trained on."""

from __future__ import annotations

import torch

import vl2
from vl2.infer.vlm import VLM


@torch.no_grad()
def load_talkative(dtype: str = "float32") -> VLM:
    """Load `nano` with a head that never chooses the end of an answer."""
    vlm = vl2.load("nano", dtype=dtype)
    # The end gets logit 0, and the likeliest of thousands of tokens always more.
    vlm.model.language.lm_head.weight[vlm.processor.tokenizer.eos_id] = 0
    return vlm
