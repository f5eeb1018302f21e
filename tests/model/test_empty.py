"""Models of shapes alone, and that they cost no more than that."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

from tests.model.configs import small_model
from vl2.model import VL2
from vl2.model.empty import shapes_only

WORD = Path(__file__).parents[2] / "examples/word.png"


def test_a_model_of_shapes_alone_has_the_shapes_of_one_with_weights() -> None:
    whole = small_model()
    with shapes_only():
        empty = VL2(whole.config)
    assert {name: (t.shape, t.dtype) for name, t in empty.state_dict().items()} == {
        name: (t.shape, t.dtype) for name, t in whole.state_dict().items()
    }
    assert all(t.is_meta for t in (*empty.parameters(), *empty.buffers()))
    assert not torch.empty(1).is_meta, "only inside"
    assert torch.nn.init.ones_(torch.zeros(2)).tolist() == [1, 1], "only inside"


def test_an_answer_on_a_cpu_does_without_pytorchs_compiler() -> None:
    # It is 70 MB of a process, and a second of every command.
    program = (
        "import sys, vl2\n"
        "vlm = vl2.load('nano', device='cpu')\n"
        f"answer = ''.join(vlm.stream('What does the image say?', [{str(WORD)!r}], max_new_tokens=2))\n"
        "assert answer\n"
        "names = ('torch._dynamo', 'torch._inductor', 'sympy')\n"
        "sys.exit(' '.join(name for name in names if name in sys.modules) or None)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stderr) == (0, "")
