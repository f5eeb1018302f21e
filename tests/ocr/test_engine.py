"""What the engine offers works for the DeepSeek-OCR family as for DeepSeek-VL2: formats, caches, batches, saving."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.ocr.cases import CASES, picture
from tests.ocr.golden import SMALLEST_MODE, apart, both_encoders, toy_folder, toy_vlm
from vl2.checkpoint.folder import stored_tensors
from vl2.checkpoint.toy_checkpoint import toy_config
from vl2.checkpoint.write import quantize_checkpoint
from vl2.config import ModelConfig
from vl2.errors import UserError
from vl2.infer.generate import generate
from vl2.infer.prefill import Prefill, Reuse
from vl2.infer.sampling import GenerateOptions
from vl2.infer.vlm import VLM, load
from vl2.process.decode import RELEASED_OPTIONS
from vl2.process.sample import collate
from vl2.process.tile_report import TileReport
from vl2.quant.modules import QuantizedLinear

CASE = next(case for case in CASES if case.name == "tiny-300x900")
GREEDY = GenerateOptions(max_new_tokens=5)
PAGE = Image.effect_noise((641, 1280), 60).convert("RGB")  # two crops


def answers(vlm: VLM, count: int = 8) -> tuple[int, ...]:
    return vlm.chat("Free OCR.", [picture(CASE)], max_new_tokens=count).token_ids


@both_encoders
@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_quantized_while_read_and_from_files_are_the_same(weights: str, name: str, tmp_path: Path) -> None:
    quantize_checkpoint(toy_folder(name), tmp_path / weights, weights=weights)
    options = {"device": "cpu", "tiling": SMALLEST_MODE[name], "image_options": RELEASED_OPTIONS}
    from_files = load(tmp_path / weights, **options)
    while_read = load(toy_folder(name), weights=weights, **options)
    assert from_files.weights == while_read.weights == weights
    assert answers(from_files) == answers(while_read)


SECOND_HALVES = {
    "deepseek-ocr": ("vision.clip.transformer.layers.1.self_attn.out_proj",),
    "deepseek-ocr-2": ("vision.query_encoder.layers.1.self_attn.k_proj", "vision.query_encoder.layers.0.mlp.up_proj"),
}


@both_encoders
@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_the_encoder_is_held_in_8_bits(weights: str, name: str) -> None:
    """Its blocks and the projector, but not the convolutions; the features stay close to those of plain weights."""
    plain, mode = toy_vlm(SMALLEST_MODE[name], name), SMALLEST_MODE[name]
    made = load(toy_folder(name), device="cpu", weights=weights, tiling=mode, image_options=RELEASED_OPTIONS)
    kinds = {name: m.kind for name, m in made.model.named_modules() if isinstance(m, QuantizedLinear)}
    for module in ("vision.sam.blocks.1.attn.qkv", "vision.sam.blocks.0.mlp.lin2", *SECOND_HALVES[name],
                   "projector.layers"):  # fmt: skip
        assert kinds[module] == "int8", module
    assert isinstance(made.model.vision.sam.net_3, torch.nn.Conv2d)
    sample = plain.processor.encode_prompt("<image>\nFree OCR.", [picture(CASE)])
    with torch.inference_mode():
        tokens, expected = (vlm.model.encode_tiles(sample.overviews) for vlm in (made, plain))
    error = (tokens - expected).norm() / expected.norm()
    assert 0 < error < 0.03


@both_encoders
def test_a_saved_model_has_the_same_files_and_answers(name: str, tmp_path: Path) -> None:
    vlm, mode = toy_vlm(SMALLEST_MODE[name], name), SMALLEST_MODE[name]
    vlm.save(tmp_path / "saved")
    assert stored_tensors(tmp_path / "saved").keys() == stored_tensors(toy_folder(name)).keys()
    assert ModelConfig.from_file(tmp_path / "saved" / "config.json") == toy_config(name)
    saved = load(tmp_path / "saved", device="cpu", tiling=mode, image_options=RELEASED_OPTIONS)
    assert answers(saved) == answers(vlm)


@both_encoders
def test_encoded_images_and_read_prompts_are_reused_without_changing_an_answer(name: str) -> None:
    vlm = load(toy_folder(name), device="cpu", tiling="gundam", reuse=Reuse())
    first = vlm.chat("Free OCR.", [PAGE], max_new_tokens=6)
    assert (vlm.reuse.encoder.hits, vlm.reuse.encoder.misses) == (0, 1)
    again = vlm.chat("Parse the figure.", [PAGE], max_new_tokens=6)
    same = vlm.chat("Free OCR.", [PAGE], max_new_tokens=6)
    assert vlm.reuse.encoder.misses == 1
    assert vlm.reuse.prefix.reused_tokens >= first.usage.visual_tokens
    assert same.token_ids == first.token_ids
    fresh = load(toy_folder(name), device="cpu", tiling="gundam", reuse=Reuse(encoder_bytes=0, prefix_bytes=0))
    assert fresh.chat("Parse the figure.", [PAGE], max_new_tokens=6).token_ids == again.token_ids


@both_encoders
def test_pages_of_different_sizes_are_answered_together_as_alone(name: str) -> None:
    vlm = toy_vlm("gundam", name)
    pages = [PAGE, Image.new("RGB", (100, 80), "white"), PAGE.resize((500, 500))]
    questions = [vlm.processor.encode_prompt("<image>\nFree OCR.", [page]) for page in pages]
    alone = [[event.token_id for event in vlm.sample_events(sample, GREEDY)] for sample in questions]
    together: list[list[int | None]] = [[] for _ in pages]
    events = generate(
        vlm.runner, vlm.processor.tokenizer, questions, [GREEDY] * len(pages), limits=vlm.limits, reuse=vlm.reuse
    )
    for event in events:
        together[event.request].append(event.token_id)
    assert together == alone


@both_encoders
def test_the_whole_model_in_one_pass_is_the_engine(name: str) -> None:
    """`forward` over a padded batch of pages, with and without crops, beside each alone and prefilled."""
    vlm = toy_vlm("gundam", name)
    pages = {"Free OCR.": PAGE, "Parse the figure, please.": PAGE.resize((90, 50))}
    samples = [vlm.processor.encode_prompt(f"<image>\n{text}", [page]) for text, page in pages.items()]
    with torch.inference_mode():
        logits = vlm.model(collate(samples)).logits[:, -1]
        alone = [vlm.model(collate([sample])).logits[0, -1] for sample in samples]
        rows = [vlm.runner.cache_pool(1, len(sample), 4096).take(len(sample)) for sample in samples]
        prompts = zip(samples, rows, strict=True)
        prefilled = [Prefill(vlm.runner, sample, row, opening_id=None).finish() for sample, row in prompts]
    for together, one, by_engine in zip(logits, alone, prefilled, strict=True):
        assert apart(together, one) < 1e-4
        assert apart(by_engine, one) < 1e-4


def test_rules_of_tiling_belong_to_their_model() -> None:
    with pytest.raises(UserError, match=r"tiling budget:500 is of DeepSeek-VL2: DeepSeek-OCR has paper and the modes"):
        load(toy_folder(), tiling="budget:500")
    with pytest.raises(UserError, match="tiling gundam is of DeepSeek-OCR: DeepSeek-VL2 has paper, per-image"):
        load("nano", tiling="gundam")
    with pytest.raises(UserError, match="max_tiles must be at least 2 crops of a page, got 1"):
        load(toy_folder(), max_tiles=1)
    for rule in ("tiny", "budget:500"):
        with pytest.raises(UserError, match="DeepSeek-OCR-2 has paper and the modes small, base, gundam"):
            load(toy_folder("deepseek-ocr-2"), tiling=rule)


def test_several_images_are_cropped_by_deepseek_ocr_and_not_by_unlimited_ocr() -> None:
    sizes = [[(2000, 1000), (1000, 2000)]]
    assert toy_vlm("gundam").processor.choose_grids(sizes) == [(2, 1), (1, 2)]
    assert toy_vlm("gundam", "deepseek-ocr-2").processor.choose_grids(sizes) == [(2, 1), (1, 2)]
    unlimited = toy_vlm("gundam", "unlimited-ocr").processor
    assert unlimited.choose_grids(sizes) == [(1, 1), (1, 1)]
    assert unlimited.choose_grids([[(2000, 1000)]]) == [(4, 2)]  # the largest with half as many pixels as it has


def test_an_image_scale_is_refused_because_it_would_have_no_effect() -> None:
    processor = toy_vlm("gundam").processor
    with pytest.raises(UserError, match=r"image_scale is of DeepSeek-VL2: for DeepSeek-OCR it must be 1, got 1\.5"):
        replace(processor, config=replace(processor.config, image_scale=1.5))


def test_a_report_says_what_a_page_becomes() -> None:
    report = TileReport.of(PAGE, toy_vlm("gundam").processor)
    assert report.to_dict()["visual_tokens"] == 20 * 11 + 16 * 17 + 1
    assert "views   1 x 2 crops of 640 px, then the whole in 1024 px" in report.to_text()
    report = TileReport.of(PAGE, toy_vlm("gundam", "deepseek-ocr-2").processor)
    assert "views   1 x 2 crops of 768 px, then the whole in 1024 px" in report.to_text()
    assert "tokens  545: 256 global + 1 separator + 288 local" in report.to_text()
