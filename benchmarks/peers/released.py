"""The released implementation, from a clone of yours: for
`vl2 bench --against "VENV/bin/python benchmarks/peers/released.py CLONE"`.

Its environment is the one that its README asks for (torch, transformers 4.38.2, timm, attrdict, einops). Where
xformers is not installed, PyTorch's own attention answers in its name. Nothing of the clone is copied or changed. This
adapter has not been run by this project, which keeps no clone.
"""

from __future__ import annotations

import sys
import time
import types
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "src"))

import torch
from torch.nn import functional as F

from vl2.bench.protocol import QUESTIONS, Answer, Task, make_image, random_ids, serve, timed


def stand_in_for_xformers() -> str:
    """Offer `xformers.ops.memory_efficient_attention` by PyTorch's attention, if the package is not there.

    Returns whose attention it is.
    """
    try:
        import xformers.ops  # noqa: F401
    except ImportError:

        def attention(q: Any, k: Any, v: Any, p: float = 0.0, **_: Any) -> Any:
            q, k, v = (t.transpose(1, 2) for t in (q, k, v))
            return F.scaled_dot_product_attention(q, k, v, dropout_p=p).transpose(1, 2)

        package, ops = types.ModuleType("xformers"), types.ModuleType("xformers.ops")
        ops.memory_efficient_attention = attention  # type: ignore[attr-defined]
        package.ops = ops  # type: ignore[attr-defined]
        sys.modules.update({"xformers": package, "xformers.ops": ops})
        return "PyTorch"
    return "xformers"


class Peer:
    """The released model in this process."""

    def __init__(self, clone: Path) -> None:
        if not (clone / "deepseek_vl2").is_dir():
            sys.exit(f"{clone} is no clone of the released repository: it has no folder deepseek_vl2")
        sys.path.insert(0, str(clone))

    def load(self, task: Task) -> Answer:
        if task["threads"] is not None:
            torch.set_num_threads(task["threads"])
        self.attention = stand_in_for_xformers()
        from deepseek_vl2.models import DeepseekVLV2ForCausalLM, DeepseekVLV2Processor

        self.processor = DeepseekVLV2Processor.from_pretrained(task["model"])
        dtype = torch.bfloat16 if task["dtype"] == "auto" else getattr(torch, task["dtype"])
        start = time.perf_counter()
        # The type is asked for while loading: a cast afterwards would round the rotary frequencies.
        model = DeepseekVLV2ForCausalLM.from_pretrained(task["model"], torch_dtype=dtype)
        self.model = model.to(task["device"]).eval()
        return {
            "seconds": time.perf_counter() - start,
            "name": f"released code, eager, attention by {self.attention}",
            "versions": {"torch": torch.__version__},
        }

    @torch.inference_mode()
    def encode(self, task: Task) -> Answer:
        tiles = torch.randn(task["tiles"], 3, 384, 384, generator=torch.Generator().manual_seed(task["seed"]))
        tiles = tiles.to(self.model.device, self.model.dtype)
        return timed(lambda: self.model.projector(self.model.vision(tiles)))

    @torch.inference_mode()
    def prefill(self, task: Task) -> Answer:
        ids = self._ids(1, task["tokens"], task["seed"])
        return timed(lambda: self.model.language(input_ids=ids, use_cache=True))

    @torch.inference_mode()
    def decode(self, task: Task) -> Answer:
        batch, steps = task["batch"], task["steps"]
        past = self.model.language(input_ids=self._ids(batch, task["context"], task["seed"])).past_key_values
        ids = self._ids(steps, batch, task["seed"] + 1)

        def run() -> None:
            nonlocal past
            for step in ids:
                out = self.model.language(input_ids=step.unsqueeze(1), past_key_values=past, use_cache=True)
                past = out.past_key_values
                out.logits[:, -1].argmax(-1).tolist()

        return timed(run)

    @torch.inference_mode()
    def first_token(self, task: Task) -> Answer:
        image = make_image(task["side"], task["seed"])

        def run() -> None:
            turns = [
                {"role": "<|User|>", "content": f"<image>\n{QUESTIONS[0]}", "images": ["image"]},
                {"role": "<|Assistant|>", "content": ""},
            ]
            inputs = self.processor(conversations=turns, images=[image], force_batchify=True, system_prompt="")
            inputs = inputs.to(self.model.device, dtype=self.model.dtype)
            embeds = self.model.prepare_inputs_embeds(**inputs)
            self.model.language(inputs_embeds=embeds, attention_mask=inputs.attention_mask, use_cache=True)

        return timed(run)

    def _ids(self, rows: int, columns: int, seed: int) -> torch.Tensor:
        ids = random_ids(rows * columns, self.model.config.language_config.vocab_size, seed)
        return torch.tensor(ids, device=self.model.device).view(rows, columns)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("give the folder of a clone of the released repository")
    peer = Peer(Path(sys.argv[1]))
    serve(
        {
            "load": peer.load,
            "encode": peer.encode,
            "prefill": peer.prefill,
            "decode": peer.decode,
            "first_token": peer.first_token,
        }
    )
