"""The kernels compile to machine code for NVIDIA cards, without a card: Triton brings the assembler."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="the kernels need Triton")
ROOT = Path(__file__).parents[3]


# The generations that have 16-bit products with float32 sums: of the A100, H100 and B200.
@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_every_kernel_compiles_without_spilling(capability: int, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    ran = subprocess.run(
        [sys.executable, "-m", "tests.runtime.gpu_kernels.compile", str(capability)],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert ran.returncode == 0, ran.stderr
    built = json.loads(ran.stdout)
    assert len(built) == 6
    for name, found in built.items():
        assert found["code_bytes"] > 0, name
        assert not found["spills"], name
        if name.startswith("matmul"):
            # Tensor cores, and copies that run ahead of them.
            assert found["num_products"] > 0, name
            assert found["num_async_copies"] > 0, name
