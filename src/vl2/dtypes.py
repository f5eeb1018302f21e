"""The floating-point dtypes of weights and arithmetic, by their names in config.json, recipes and flags."""

from __future__ import annotations

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
