"""The types that weights and arithmetic may have, by the names that configurations, recipes and flags give them."""

from __future__ import annotations

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
