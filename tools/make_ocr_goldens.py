"""Record what other implementations of DeepSeek-OCR compute, as goldens of our own: tests/golden/ocr.

Two of them, each from wherever it lies: the released repository (its `DeepSeek-OCR-vllm` folder: processor, grids,
encoders), whose flash_attn import is replaced by nothing, for nothing calls it; and transformers, whose `unlimited_ocr`
classes read the released layout (encoders, projector, order of tokens, language model, window over answers). None of
their code is in this repository. Both get the weights of `vl2.checkpoint.toy_checkpoint`, which follow from the names
of the tensors, and the pictures of tests/ocr/cases.py, in float32. Where both compute a thing it is recorded only if
they agree.

    pip install torch torchvision transformers easydict addict einops
    RELEASED=.../DeepSeek-OCR-master/DeepSeek-OCR-vllm
    PYTHONPATH=src python tools/make_ocr_goldens.py --released $RELEASED tests/golden/ocr
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import importlib
import json
import platform
import sys
import tempfile
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import PIL
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.ocr.cases import ANSWER_TOKENS, CASES, Case, many_sizes, picture

from vl2.checkpoint.toy_checkpoint import drawn_by_name, toy_config, write_toy_checkpoint
from vl2.config import ModelConfig
from vl2.hf.peer_classes import NO_WINDOW, open_in_transformers
from vl2.process.page_views import PAGE_RULES

DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
MOST_APART = 1e-4  # of the largest value
KEPT_TOKENS = 12  # of each picture, evenly over its sequence
IMAGE_ID = 4088  # in the toy's vocabulary


class Released:
    """The released repository's processor and encoders."""

    def __init__(self, folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
        sys.path.insert(0, str(folder))
        # transformers asks for flash_attn when its models are imported, so they come before the stand-in.
        importlib.import_module("transformers.models.unlimited_ocr.modeling_unlimited_ocr")
        auto = importlib.import_module("transformers").AutoProcessor
        flash = ModuleType("flash_attn")
        flash.flash_attn_qkvpacked_func = flash.flash_attn_func = None  # type: ignore[attr-defined]
        sys.modules["flash_attn"] = flash
        self._settings = ModuleType("config")
        vars(self._settings).update(MIN_CROPS=2, MAX_CROPS=6, PROMPT="", TOKENIZER=tokenizer, IMAGE_SIZE=640,
                                    BASE_SIZE=1024, CROP_MODE=True)  # fmt: skip
        sys.modules["config"] = self._settings
        auto.register = staticmethod(lambda *_: None)  # its processor is called here, not found by name
        self.images = importlib.import_module("process.image_process")
        self.images.ProcessorMixin.__init__ = lambda *_, **__: None
        self.tokenizer = tokenizer

    def process(self, case: Case, image: Image.Image) -> tuple[list[int], Tensor, Tensor | None, list[int]]:
        """Return ids, the overview [1, 3, B, B], the crops [n, 3, P, P] or None, and the grid."""
        crops = case.mode == "gundam"
        base = PAGE_RULES["DeepSeek-OCR"].view_px[case.mode]  # type: ignore[index]
        values = {"PROMPT": f"<image>\n{case.prompt}", "BASE_SIZE": base, "IMAGE_SIZE": 640 if crops else base}
        vars(self.images).update(values)
        made = self.images.DeepseekOCRProcessor(tokenizer=self.tokenizer)
        made.tokenizer = self.tokenizer
        ((ids, overview, cropped, _, grid, counts, _),) = made.tokenize_with_images([image], cropping=crops)
        assert counts[0] == int((ids[0] == made.image_token_id).sum())
        has_crops = grid[0].tolist() != [1, 1]
        return ids[0].tolist(), overview, cropped[0] if has_crops else None, grid[0].tolist()

    def grids(self, max_crops: int) -> str:
        """Return the grid of every size of `many_sizes` as two digits in base 36."""
        chosen = []
        for width, height in many_sizes():
            grid = (1, 1)
            if width > 640 or height > 640:  # as tokenize_with_images asks before it counts
                grid = self.images.count_tiles(width, height, 2, max_crops, 640)
            chosen.append(DIGITS[grid[0]] + DIGITS[grid[1]])
        return "".join(chosen)

    def encoder(self, config: ModelConfig) -> nn.Module:
        sam_module = importlib.import_module("deepencoder.sam_vary_sdpa")
        clip_module = importlib.import_module("deepencoder.clip_sdpa")
        linear = importlib.import_module("deepencoder.build_linear")
        vision: Any = config.vision_config
        sam, clip = vision.sam, vision.second
        one = sam_module.ImageEncoderViT(
            depth=sam.layers, embed_dim=sam.width, num_heads=sam.heads, img_size=sam.image_size,
            patch_size=sam.patch_size, out_chans=sam.neck_channels, use_rel_pos=True, window_size=sam.window_size,
            global_attn_indexes=sam.global_attn_indexes, norm_layer=functools.partial(nn.LayerNorm, eps=1e-6),
        )  # fmt: skip
        # Of other widths than the released ones, which its code fixes.
        first, second = sam.downsample_channels
        one.net_2 = nn.Conv2d(sam.neck_channels, first, 3, stride=2, padding=1, bias=False)
        one.net_3 = nn.Conv2d(first, second, 3, stride=2, padding=1, bias=False)
        shape = dict(clip_module.vit_model_cfg)
        shape.update(num_layers=clip.layers, hidden_size=clip.width, num_attention_heads=clip.heads,
                     num_heads=clip.heads, ffn_hidden_size=clip.width * clip.mlp_ratio)  # fmt: skip
        two = clip_module.VitModel(cfg=clip_module.adict(shape))
        projector_config = config.projector_config
        three = linear.MlpProjector(
            importlib.import_module("addict").Dict(
                projector_type="linear", input_dim=projector_config.input_dim, n_embed=projector_config.n_embed
            )
        )
        return fill(ReleasedEncoder(one, two, three))


class ReleasedEncoder(nn.Module):
    """The released modules under the names that they have in the files."""

    def __init__(self, sam_model: nn.Module, vision_model: nn.Module, projector: nn.Module) -> None:
        super().__init__()
        self.model = nn.ModuleDict({"sam_model": sam_model, "vision_model": vision_model, "projector": projector})

    def forward(self, views: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features and the projected tokens of views, as the released `_pixel_values_to_embedding` does."""
        seen = self.model["sam_model"](views)
        read = self.model["vision_model"](views, seen)
        features = torch.cat((read[:, 1:], seen.flatten(2).permute(0, 2, 1)), dim=-1)
        return features, self.model["projector"](features)


@torch.no_grad()
def fill(module: nn.Module) -> nn.Module:
    for name, parameter in module.named_parameters():
        parameter.copy_(drawn_by_name(name, tuple(parameter.shape)))
    return module.eval()


def apart(one: Tensor, other: Tensor) -> float:
    """Return the largest difference, relative to the largest value."""
    return float((one - other).abs().max() / other.abs().max())


def sha256(values: Tensor) -> str:
    return hashlib.sha256(values.contiguous().numpy().tobytes()).hexdigest()[:16]


@torch.inference_mode()
def record(released: Released, folder: Path, out: Path) -> None:
    config, tensors, cases, worst = toy_config(), {}, {}, {"features": 0.0, "tokens": 0.0}
    encoder = released.encoder(config)
    model = open_in_transformers(config, folder / "ocr", IMAGE_ID)
    for case in CASES:
        ids, overview, crops, grid = released.process(case, picture(case))
        stacks = [overview] if crops is None else [overview, crops]
        made = [encoder(stack) for stack in stacks]
        theirs = [model.model.vision_tower(stack).last_hidden_state for stack in stacks]
        image = model.model.get_image_features(overview, crops, [0 if crops is None else len(crops)], [grid])
        (tokens,) = image.pooler_output
        for (features, _), other in zip(made, theirs, strict=True):
            worst["features"] = max(worst["features"], apart(other, features))
        worst["tokens"] = max(worst["tokens"], *(_far(part, tokens) for _, part in made))
        answer, logits = answer_of(model, ids, overview, crops, grid)
        places = np.linspace(0, len(tokens) - 1, KEPT_TOKENS).astype(int)
        tensors[f"{case.name}.features"] = made[0][0][0, :: max(1, made[0][0].shape[1] // KEPT_TOKENS)].clone()
        tensors[f"{case.name}.tokens"] = tokens[torch.from_numpy(places)].clone()
        tensors[f"{case.name}.logits"] = logits[::16].clone()
        cases[case.name] = {
            "grid": grid,
            "num_visual_tokens": len(tokens),
            "text_ids": [token for token in ids if token != IMAGE_ID],
            "num_ids": len(ids),
            "overview_f32_sha256": sha256(overview),
            "crops_f32_sha256": None if crops is None else sha256(crops),
            "answer": answer,
        }
        print(case.name, grid, len(tokens), worst, answer[:6], flush=True)
    assert max(worst.values()) < MOST_APART, worst
    unlimited = record_window(released, folder)
    save_file(tensors, out / "toy.safetensors")
    stack = {name: version(name) for name in ("torch", "torchvision", "transformers", "tokenizers")}
    write_json(out / "toy.json", {
        "makers": {**stack, "Pillow": PIL.__version__, "python": platform.python_version()},
        "most_apart": worst, "cases": cases, "unlimited": unlimited,
    })  # fmt: skip
    write_json(out / "page_grids.json", {str(most): released.grids(most) for most in (6, 9, 32)})


def _far(part: Tensor, tokens: Tensor) -> float:
    """Return how far the tokens of the views are from the nearest in an arranged sequence, at most."""
    nearest = torch.cdist(part.flatten(0, 1).double(), tokens.double()).min(dim=1).values
    return float(nearest.max() / tokens.abs().max())


def answer_of(model: Any, ids: list[int], overview: Tensor, crops: Tensor | None, grid: list[int],
              length: int = ANSWER_TOKENS) -> tuple[list[int], Tensor]:  # fmt: skip
    """Return a greedy answer, end or not, and the logits of its first token."""
    given = torch.tensor([ids])
    found = model.generate(
        input_ids=given, attention_mask=torch.ones_like(given), pixel_values=overview, pixel_values_local=crops,
        num_local_patches=[0 if crops is None else len(crops)], patches_grid=[grid], max_new_tokens=length,
        min_new_tokens=length, do_sample=False, eos_token_id=None, pad_token_id=2, output_logits=True,
        return_dict_in_generate=True,
    )  # fmt: skip
    return found.sequences[0, len(ids) :].tolist(), found.logits[0][0]


def record_window(released: Released, folder: Path) -> dict[str, Any]:
    """Return long answers of Unlimited-OCR, whose window leaves most of them unseen."""
    config = toy_config("unlimited-ocr")
    assert config.answer_window is not None
    answers = {}
    for window in (config.answer_window, NO_WINDOW):
        model = open_in_transformers(replace(config, answer_window=window), folder / "unlimited", IMAGE_ID)
        for case in CASES[:3]:
            ids, overview, crops, grid = released.process(case, picture(case))
            answers[f"{case.name}.{window}"] = answer_of(model, ids, overview, crops, grid, 6 * config.answer_window)[0]
    return {"window": config.answer_window, "answers": answers}


def guard_cases() -> list[dict[str, Any]]:
    """Return which ids the released guard bans behind sequences of few different ids."""
    logits_process = importlib.import_module("transformers.generation.logits_process")
    vars(logits_process).setdefault("_calc_banned_ngram_tokens", None)  # imported and not called
    kind = importlib.import_module("process.ngram_norepeat").NoRepeatNGramLogitsProcessor
    draws, cases = np.random.RandomState(30), []
    for _ in range(200):
        size, window = int(draws.randint(2, 6)), int(draws.randint(1, 40))  # of size 1 it bans nothing
        ids = draws.randint(0, draws.randint(2, 5), draws.randint(0, 60)).tolist()
        allowed = draws.choice(5, draws.randint(0, 2), replace=False).tolist()
        scores = kind(size, window, set(allowed))(ids, torch.zeros(5))
        cases.append({"size": size, "window": window, "allowed": allowed, "ids": ids,
                      "banned": scores.isinf().nonzero().flatten().tolist()})  # fmt: skip
    return cases


def write_json(path: Path, values: Any) -> None:
    path.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--released", type=Path, required=True, help="the released repository's DeepSeek-OCR-vllm")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_toy_checkpoint(folder / "ocr")
        write_toy_checkpoint(folder / "unlimited", toy_config("unlimited-ocr"))
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_file=str(folder / "ocr" / "tokenizer.json"), bos_token="<｜begin▁of▁sentence｜>",
            eos_token="<｜end▁of▁sentence｜>", pad_token="<｜▁pad▁｜>",
        )  # fmt: skip
        released = Released(arguments.released.resolve(), tokenizer)
        (arguments.out / "ngram_guard.json").write_text(json.dumps(guard_cases()) + "\n", encoding="utf-8")
        record(released, folder, arguments.out)


if __name__ == "__main__":
    main()
