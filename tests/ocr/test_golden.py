"""Our DeepSeek-OCR and DeepSeek-OCR-2 beside two other implementations each; see tests/golden/ocr/README.md."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.ocr.cases import ANSWER_TOKENS, CASES, CASES_2, Case, many_sizes
from tests.ocr.golden import apart, expand, golden_cases, page_grids, sample_of, toy_tensors, toy_vlm
from vl2.grid import UNTILED
from vl2.infer.sampling import GenerateOptions
from vl2.process.page_views import choose_crops
from vl2.process.sample import Sample

NEAR = 1e-4  # float32, relative to the largest value; the two makers are 2e-6 apart
ALL_CASES = [*CASES, *CASES_2]
cases = pytest.mark.parametrize("case", ALL_CASES, ids=[case.name for case in ALL_CASES])


def sha256(values: Tensor) -> str:
    return hashlib.sha256(values.contiguous().numpy().tobytes()).hexdigest()[:16]


@cases
def test_pixels_features_tokens_logits_and_answers_are_the_others(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """One run of the engine, of which every intermediate value is kept: views of 1024 px take most of the time."""
    golden, tensors, sample = golden_cases()[case.name], toy_tensors(), sample_of(case)
    check_sample(sample, golden)
    vlm = toy_vlm(case.mode, case.kind)
    vlm.reuse.clear()
    made: dict[str, list[Tensor]] = {"features": [], "tokens": [], "logits": []}

    def keep(name: str, run: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def kept(*given: Any) -> Tensor:
            value = run(*given)
            made[name].append(value)
            return value

        return kept

    monkeypatch.setattr(vlm.model.vision, "forward", keep("features", vlm.model.vision.forward))
    monkeypatch.setattr(vlm.model, "arrange_image", keep("tokens", vlm.model.arrange_image))
    monkeypatch.setattr(vlm.runner, "logits", keep("logits", vlm.runner.logits))
    options = GenerateOptions(max_new_tokens=ANSWER_TOKENS, no_repeat_ngram_size=0, logit_bias={1: -100})
    answer = [event.token_id for event in vlm.sample_events(sample, options)]
    features, (visual_TD,), (logits,) = made["features"][0], made["tokens"], made["logits"]
    kept = tensors[f"{case.name}.features"]
    assert apart(features[0, :: max(1, features.shape[1] // 12)], kept) < NEAR
    kept = tensors[f"{case.name}.tokens"]
    places = np.linspace(0, len(visual_TD) - 1, len(kept)).astype(int)
    assert apart(visual_TD[torch.from_numpy(places)], kept) < NEAR
    assert apart(logits[::16], tensors[f"{case.name}.logits"]) < NEAR
    assert answer == golden["answer"]


def check_sample(sample: Sample, golden: dict[str, Any]) -> None:
    """Check ids, grid and pixels, which are the released processor's."""
    (grid,) = sample.grid_list
    assert list(grid) == golden["grid"]
    assert (len(sample), int(sample.image_mask.sum())) == (golden["num_ids"], golden["num_visual_tokens"])
    assert sample.input_ids[~sample.image_mask].tolist() == golden["text_ids"]
    assert sample.image_mask.tolist() == [False] + [True] * golden["num_visual_tokens"] + [False] * (
        len(golden["text_ids"]) - 1
    )
    assert sample.overviews is not None
    assert sha256(sample.overviews) == golden["overview_f32_sha256"]
    assert (sha256(sample.tiles) if len(sample.tiles) else None) == golden["crops_f32_sha256"]


@pytest.mark.parametrize("most", [6, 9, 32])
def test_ten_thousand_sizes_get_the_released_grids(most: int) -> None:
    sizes = many_sizes()
    released = list(expand(page_grids()[str(most)]))
    assert len(released) == len(sizes) == 10_000
    assert [choose_crops(size, most, 640) for size in sizes] == released


def test_ten_thousand_sizes_get_the_released_number_of_tokens() -> None:
    layout = toy_vlm("gundam").processor.cutter.layout
    for columns, rows in expand(page_grids()["6"]):
        # As the released get_num_image_tokens counts: a view of 1024 px has 16 tokens a side, a crop of 640 px 10.
        local = rows * 10 * (columns * 10 + 1) if (columns, rows) != UNTILED else 0
        assert layout.num_tokens((columns, rows)) == 16 * 17 + local + 1


def test_ten_thousand_sizes_get_the_grids_and_tokens_of_deepseek_ocr_2() -> None:
    """Grids by the released code; numbers of views by transformers; tokens as the released README states them."""
    sizes, cutter = many_sizes(), toy_vlm("gundam", "deepseek-ocr-2").processor.cutter
    golden = page_grids("page_grids_2.json")
    grids = cutter.choose_grids([sizes])
    assert grids == list(expand(golden["6"]))
    views = [cutter.layout.num_tiles(grid) + cutter.layout.num_overviews(grid) for grid in grids]
    assert views == [int(digit) for digit in golden["views"]]
    assert [cutter.layout.num_tokens(grid) for grid in grids] == [(n - 1) * 144 + 256 + 1 for n in views]
