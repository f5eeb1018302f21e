"""Run the Triton kernels on a card, or on the CPU by Triton's interpreter (see `tests/conftest.py`)."""

from __future__ import annotations

from typing import Any

import pytest
import torch

HAS_CARD = torch.cuda.is_available()
DEVICE = torch.device("cuda" if HAS_CARD else "cpu")

pytest.importorskip("triton", reason="the kernels need Triton (the extra `triton`)")


@pytest.fixture(autouse=True)
def bfloat16_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the interpreter multiply bfloat16 numbers. It holds them as 16-bit integers, and would multiply those."""
    if HAS_CARD:
        return
    from triton.runtime.interpreter import TensorHandle, interpreter_builder, tl

    create_dot = interpreter_builder.create_dot

    def widened(handle: Any) -> Any:
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        return TensorHandle((handle.data.astype("uint32") << 16).view("float32"), tl.float32)

    def create(a: Any, b: Any, *arguments: Any) -> Any:
        return create_dot(widened(a), widened(b), *arguments)

    monkeypatch.setattr(interpreter_builder, "create_dot", create)
