"""Record what other implementations of DeepSeek-OCR-2 compute, as goldens of our own: tests/golden/ocr/*_2.*.

Two of them, as in make_ocr_goldens.py: the released repository (its `DeepSeek-OCR2-vllm` folder: processor, grids, SAM,
the decoder with queries and its mask, projector), and transformers' `deepseek_ocr2` classes. None of their code is in
this repository. The released decoder subclasses transformers' Qwen2Model and overrides a method that makes its mask.
transformers 5 does not call that method, so it is called here, and the mask is given to the model.

    pip install torch torchvision transformers easydict addict einops
    RELEASED=.../DeepSeek-OCR2-master/DeepSeek-OCR2-vllm
    PYTHONPATH=src python tools/make_ocr2_goldens.py --released $RELEASED tests/golden/ocr
"""

from __future__ import annotations

import argparse
import functools
import importlib
import platform
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import PIL
import torch
from make_ocr_goldens import DIGITS, IMAGE_ID, KEPT_TOKENS, MOST_APART, apart, fill, sha256, write_json
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.ocr.cases import ANSWER_TOKENS, CASES_2, Case, many_sizes, picture

from vl2.checkpoint.toy_checkpoint import toy_config, write_toy_checkpoint
from vl2.config import ModelConfig
from vl2.hf.peer_classes import open_in_transformers

BASE_PX = {"small": 768, "base": 1024, "gundam": 1024}


class Released:
    """The released repository's processor and encoder."""

    def __init__(self, folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
        sys.path.insert(0, str(folder))
        # transformers asks for flash_attn when its models are imported, so they come before the stand-in.
        importlib.import_module("transformers.models.deepseek_ocr2.modeling_deepseek_ocr2")
        auto = importlib.import_module("transformers").AutoProcessor
        flash = ModuleType("flash_attn")
        flash.flash_attn_qkvpacked_func = flash.flash_attn_func = None  # type: ignore[attr-defined]
        sys.modules["flash_attn"] = flash
        settings = ModuleType("config")
        vars(settings).update(MIN_CROPS=2, MAX_CROPS=6, PROMPT="", TOKENIZER=tokenizer, IMAGE_SIZE=768,
                              BASE_SIZE=1024, CROP_MODE=True)  # fmt: skip
        sys.modules["config"] = settings
        auto.register = staticmethod(lambda *_: None)  # its processor is called here, not found by name
        self.images = importlib.import_module("process.image_process")
        self.images.ProcessorMixin.__init__ = lambda *_, **__: None
        self.tokenizer = tokenizer

    def process(self, case: Case, image: Image.Image) -> tuple[list[int], Tensor, Tensor | None, list[int]]:
        """Return ids, the overview [1, 3, B, B], the crops [n, 3, P, P] or None, and the grid."""
        crops, base = case.mode == "gundam", BASE_PX[case.mode]
        values = {"PROMPT": f"<image>\n{case.prompt}", "BASE_SIZE": base, "IMAGE_SIZE": 768 if crops else base}
        vars(self.images).update(values)
        made = self.images.DeepseekOCR2Processor(tokenizer=self.tokenizer)
        made.tokenizer = self.tokenizer
        ((ids, overview, cropped, _, grid, counts, _),) = made.tokenize_with_images([image], cropping=crops)
        assert counts[0] == int((ids[0] == made.image_token_id).sum())
        has_crops = grid[0].tolist() != [1, 1]
        return ids[0].tolist(), overview, cropped[0] if has_crops else None, grid[0].tolist()

    def grids(self) -> list[tuple[int, int]]:
        """Return the grid of every size of `many_sizes`."""
        return [
            tuple(self.images.count_tiles(*size)) if max(size) > 768 else (1, 1)  # as tokenize_with_images asks
            for size in many_sizes()
        ]

    def encoder(self, config: ModelConfig) -> nn.Module:
        vision: Any = config.vision_config
        sam, queries = vision.sam, vision.second
        one = importlib.import_module("deepencoderv2.sam_vary_sdpa").ImageEncoderViT(
            depth=sam.layers, embed_dim=sam.width, num_heads=sam.heads, img_size=sam.image_size,
            patch_size=sam.patch_size, out_chans=sam.neck_channels, use_rel_pos=True, window_size=sam.window_size,
            global_attn_indexes=sam.global_attn_indexes, norm_layer=functools.partial(nn.LayerNorm, eps=1e-6),
        )  # fmt: skip
        # Of other widths than the released ones, which its code fixes.
        first, second = sam.downsample_channels
        one.net_2 = nn.Conv2d(sam.neck_channels, first, 3, stride=2, padding=1, bias=False)
        one.net_3 = nn.Conv2d(first, second, 3, stride=2, padding=1, bias=False)
        two = importlib.import_module("deepencoderv2.qwen2_d2e").Qwen2Decoder2Encoder(
            decoder_layer=queries.layers, hidden_dimension=queries.dim, num_attention_heads=queries.heads,
            num_key_value_heads=queries.kv_heads, intermediate_size=queries.intermediate_size, max_query=400,
        )  # fmt: skip
        give_mask(two.model.model)
        projector_config = config.projector_config
        three = importlib.import_module("deepencoderv2.build_linear").MlpProjector(
            importlib.import_module("addict").Dict(
                projector_type="linear", input_dim=projector_config.input_dim, n_embed=projector_config.n_embed
            )
        )
        return fill(ReleasedEncoder(one, two, three))


def give_mask(decoder: Any) -> None:
    """Let the released decoder pass the mask that its own method makes to transformers' Qwen2Model."""
    base = type(decoder).__mro__[1]

    def forward(inputs_embeds: Tensor, token_type_ids: Tensor, attention_mask: None = None) -> Any:
        decoder._current_token_type_ids = token_type_ids
        mask = decoder._update_causal_mask(attention_mask, inputs_embeds, None, None, None)
        return base.forward(decoder, inputs_embeds=inputs_embeds, attention_mask={"full_attention": mask})

    decoder.forward = forward


class ReleasedEncoder(nn.Module):
    """The released modules under the names that they have in the files."""

    def __init__(self, sam_model: nn.Module, qwen2_model: nn.Module, projector: nn.Module) -> None:
        super().__init__()
        self.model = nn.ModuleDict({"sam_model": sam_model, "qwen2_model": qwen2_model, "projector": projector})

    def forward(self, views: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features and the projected tokens of views, as the released `_pixel_values_to_embedding` does."""
        features = self.model["qwen2_model"](self.model["sam_model"](views))
        return features, self.model["projector"](features)


def patch_counts() -> list[int]:
    """Return transformers' number of views of each size of `many_sizes` that has a side above 768 px, 1 for others.

    Its `get_number_of_image_patches` counts crops of small pictures too, which its own processor does not cut.
    """
    module = importlib.import_module("transformers.models.deepseek_ocr2.image_processing_pil_deepseek_ocr2")
    processor = module.DeepseekOcr2ImageProcessorPil()
    crop = {"patch_size": {"height": processor.tile_size, "width": processor.tile_size}}
    return [
        processor.get_number_of_image_patches(height, width, crop) if max(width, height) > processor.tile_size else 1
        for width, height in many_sizes()
    ]


@torch.inference_mode()
def record(released: Released, folder: Path, out: Path) -> None:
    config, tensors, cases = toy_config("deepseek-ocr-2"), {}, {}
    worst = {"features": 0.0, "tokens": 0.0}
    encoder, model = released.encoder(config), open_in_transformers(config, folder, IMAGE_ID)
    for case in CASES_2:
        ids, overview, crops, grid = released.process(case, picture(case))
        stacks = [overview] if crops is None else [crops, overview]  # in the order of the tokens
        made = [encoder(stack) for stack in stacks]
        theirs = [model.model.vision_tower(stack).last_hidden_state for stack in stacks]
        num_crops = [0 if crops is None else len(crops)]
        (tokens,) = model.model.get_image_features(overview, crops, num_crops).pooler_output
        for (features, _), other in zip(made, theirs, strict=True):
            worst["features"] = max(worst["features"], apart(other, features))
        in_order = torch.cat([part.flatten(0, 1) for _, part in made])
        worst["tokens"] = max(worst["tokens"], apart(tokens[:-1], in_order))  # the separator is last
        answer, logits = answer_of(model, ids, overview, crops, num_crops)
        places = np.linspace(0, len(tokens) - 1, KEPT_TOKENS).astype(int)
        of_overview = made[-1][0]
        tensors[f"{case.name}.features"] = of_overview[0, :: max(1, of_overview.shape[1] // KEPT_TOKENS)].clone()
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
    grids, counts = released.grids(), patch_counts()
    assert counts == [1 if grid == (1, 1) else 1 + grid[0] * grid[1] for grid in grids]
    save_file(tensors, out / "toy_2.safetensors")
    stack = {name: version(name) for name in ("torch", "torchvision", "transformers", "tokenizers")}
    makers = {**stack, "Pillow": PIL.__version__, "python": platform.python_version()}
    write_json(out / "toy_2.json", {"makers": makers, "most_apart": worst, "cases": cases})
    digits = "".join(DIGITS[columns] + DIGITS[rows] for columns, rows in grids)
    write_json(out / "page_grids_2.json", {"6": digits, "views": "".join(map(str, counts))})


def answer_of(
    model: Any, ids: list[int], overview: Tensor, crops: Tensor | None, num_crops: list[int]
) -> tuple[list[int], Tensor]:
    """Return a greedy answer of ANSWER_TOKENS, without an end, and the logits of its first token."""
    given = torch.tensor([ids])
    found = model.generate(
        input_ids=given, attention_mask=torch.ones_like(given), pixel_values=overview, pixel_values_local=crops,
        num_local_patches=num_crops, max_new_tokens=ANSWER_TOKENS, min_new_tokens=ANSWER_TOKENS, do_sample=False,
        eos_token_id=None, pad_token_id=2, output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    return found.sequences[0, len(ids) :].tolist(), found.logits[0][0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--released", type=Path, required=True, help="the released repository's DeepSeek-OCR2-vllm")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "ocr-2"
        write_toy_checkpoint(folder, toy_config("deepseek-ocr-2"))
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_file=str(folder / "tokenizer.json"), bos_token="<｜begin▁of▁sentence｜>",
            eos_token="<｜end▁of▁sentence｜>", pad_token="<｜▁pad▁｜>",
        )  # fmt: skip
        record(Released(arguments.released.resolve(), tokenizer), folder, arguments.out)


if __name__ == "__main__":
    main()
