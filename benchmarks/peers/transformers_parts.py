"""transformers' nearest parts, assembled: for `vl2 bench --against transformers-parts`.

SigLIP, our adaptor and layout (the library has none), and the nearest language model that it has: DeepSeek-V3 for
latent attention, GLM-4-MoE (multi-head attention, shared experts, a dense first layer) for the tiny size. The work is
that of the released model; the weights are random, so loading is not measured. Run with transformers 5.24.0.

    vl2 bench -m FOLDER --against "python benchmarks/peers/transformers_parts.py [--compiled]"

With `--compiled` encoder and language model go through `torch.compile`, with a static cache. It compiles anew for every
shape, about 20 to 40 s each, before the time is taken.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2] / "src"))

import torch
from transformers import Cache, DynamicCache, Glm4MoeConfig, Glm4MoeForCausalLM, SiglipVisionModel, StaticCache
from transformers_model import DeepseekV3ForCausalLM, language_config, vision_config

from vl2.bench.protocol import QUESTIONS, Answer, Task, Unsupported, make_image, random_ids, serve, timed
from vl2.config import LanguageConfig, ModelConfig
from vl2.model.layout import arrange_tiles, place_visual
from vl2.model.projector import Projector
from vl2.process.conversation import user_turn
from vl2.process.processor import Processor
from vl2.process.sample import Sample

# Up to so many rows, compiled, each token's experts are gathered and multiplied as one batch: 62 ms a step of one row,
# where grouped products take 88 (Zen 4, two cores).
FEW_ROWS = 4


def multi_head_config(config: LanguageConfig) -> Glm4MoeConfig:
    """Return the library's configuration of a model with multi-head attention and shared experts."""
    same = (
        "vocab_size hidden_size intermediate_size moe_intermediate_size num_hidden_layers num_attention_heads "
        "n_shared_experts n_routed_experts num_experts_per_tok routed_scaling_factor first_k_dense_replace "
        "norm_topk_prob max_position_embeddings rms_norm_eps attention_bias"
    )
    return Glm4MoeConfig(
        **{name: getattr(config, name) for name in same.split()},
        num_key_value_heads=config.num_kv_heads,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta, "partial_rotary_factor": 1.0},
        head_dim=config.hidden_size // config.num_attention_heads,
        num_mtp_layers=0,
    )


class Peer:
    """The parts, random, in one process."""

    def load(self, task: Task) -> Answer:
        if task.get("weights", "auto") != "auto":
            raise Unsupported("this adapter has plain weights only")
        if task["threads"] is not None:
            torch.set_num_threads(task["threads"])
        folder, self.device = Path(task["model"]), torch.device(task["device"])
        self.config = ModelConfig.from_dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
        dtype = torch.bfloat16 if task["dtype"] == "auto" else getattr(torch, task["dtype"])
        torch.set_default_dtype(dtype)
        language = self.config.language_config
        with torch.device(self.device):
            self.vision = SiglipVisionModel(vision_config(self.config.vision_config)).eval()
            self.projector = Projector(self.config.projector_config).eval()
            width = language.hidden_size
            self.newline, self.separator = torch.zeros(width), torch.zeros(width)
            self.language = (
                DeepseekV3ForCausalLM(language_config(language))
                if language.use_mla
                else Glm4MoeForCausalLM(multi_head_config(language))
            ).eval()
        torch.set_default_dtype(torch.float32)
        self.dtype = dtype
        self.language.set_experts_implementation("grouped_mm")  # its fastest, but for few rows compiled
        self.compiled = "--compiled" in sys.argv
        self.see, self.run = self.vision, self.language
        if self.compiled:
            torch._dynamo.config.cache_size_limit = 64  # shapes
            self.see, self.run = torch.compile(self.vision), torch.compile(self.language)
        self.processor = Processor.from_folder(folder)
        form = "compiled" if self.compiled else "eager, grouped experts"
        return {
            "not_loaded": "its weights are random, made in memory",
            "name": f"transformers {version('transformers')} parts, {form}",
            "versions": {name: version(name) for name in ("transformers", "torch")},
        }

    @torch.inference_mode()
    def encode(self, task: Task) -> Answer:
        side = self.config.vision_config.image_size
        tiles = torch.randn(task["tiles"], 3, side, side, generator=torch.Generator().manual_seed(task["seed"]))
        return self._timed(lambda: self._encode(tiles))

    @torch.inference_mode()
    def prefill(self, task: Task) -> Answer:
        ids = self._ids(1, task["tokens"], task["seed"])
        return self._timed(lambda: self._step(ids, self._cache(task["tokens"])))

    @torch.inference_mode()
    def decode(self, task: Task) -> Answer:
        batch, steps = task["batch"], task["steps"]
        prompt = self._ids(1, task["context"], task["seed"]).expand(batch, -1)
        ids = self._ids(steps, batch, task["seed"] + 1)

        def prepared() -> Callable[[], object]:
            self.language.set_experts_implementation("grouped_mm")
            cache = self._cache(task["context"] + steps)
            self.language(input_ids=prompt, past_key_values=cache, use_cache=True, logits_to_keep=1)
            if self.compiled and batch <= FEW_ROWS:
                self.language.set_experts_implementation("batched_mm")
            return lambda: [self._step(step.unsqueeze(1), cache).argmax(-1).tolist() for step in ids]

        if self.compiled:
            prepared()()
        answer = timed(prepared())
        self.language.set_experts_implementation("grouped_mm")
        return answer

    def first_token(self, task: Task) -> Answer:
        return self._ask(task, QUESTIONS[0])

    def second_question(self, task: Task) -> Answer:
        return self._ask(task, QUESTIONS[1])

    @torch.inference_mode()
    def _ask(self, task: Task, question: str) -> Answer:
        """Nothing is kept between questions: the library offers no cache of images or prompts for such parts."""
        image = make_image(task["side"], task["seed"])

        def run() -> None:
            sample: Sample = self.processor.encode([user_turn(question, [image])])
            visual = arrange_tiles(self._encode(sample.tiles), sample.grid_list, self.newline, self.separator)
            ids, mask = (t.unsqueeze(0).to(self.device) for t in (sample.input_ids, sample.image_mask))
            embeds = place_visual(self.language.get_input_embeddings()(ids), mask, visual)
            cache = self._cache(embeds.shape[1])
            self.run(inputs_embeds=embeds, past_key_values=cache, use_cache=True, logits_to_keep=1)

        return self._timed(run)

    def _timed(self, run: Callable[[], object]) -> Answer:
        if self.compiled:
            run()
        return timed(run)

    def _cache(self, positions: int) -> Cache:
        return StaticCache(config=self.language.config, max_cache_len=positions) if self.compiled else DynamicCache()

    def _encode(self, tiles: torch.Tensor) -> torch.Tensor:
        patches: Any = self.see(tiles.to(self.device, self.dtype)).last_hidden_state
        tokens: torch.Tensor = self.projector(patches)
        return tokens

    def _step(self, ids: torch.Tensor, cache: Cache) -> torch.Tensor:
        out = self.run(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        logits: torch.Tensor = out.logits[:, -1]
        return logits

    def _ids(self, rows: int, columns: int, seed: int) -> torch.Tensor:
        ids = random_ids(rows * columns, self.config.language_config.vocab_size, seed)
        return torch.tensor(ids, device=self.device).view(rows, columns)


if __name__ == "__main__":
    peer = Peer()
    serve(
        {
            "load": peer.load,
            "encode": peer.encode,
            "prefill": peer.prefill,
            "decode": peer.decode,
            "first_token": peer.first_token,
            "second_question": peer.second_question,
        }
    )
