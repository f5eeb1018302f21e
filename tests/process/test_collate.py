from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from vl2.errors import UserError
from vl2.grid import OverviewFirst
from vl2.process.sample import collate

from ..reference import has_other_pixels
from .golden import TAGS, conversations, expand, processor_for, released_stack, sha256, with_paths


@pytest.mark.parametrize("index", range(5))
@pytest.mark.parametrize("tag", TAGS)
def test_batches_are_the_released_ones(tag, index, processors):
    processor = processor_for(tag, processors)
    golden = conversations(tag)["batches"][index]
    cases = {case["name"]: case for case in conversations(tag)["cases"]}
    samples = [
        processor.encode(with_paths(cases[name]["messages"]), mask_prompt=False) for name in golden["name"].split("+")
    ]
    batch = collate(samples, pad=golden["padding"])
    for values, key in (
        (batch.input_ids, "input_ids_rle"),
        (batch.labels, "labels_rle"),
        (batch.attention_mask, "attention_mask_rle"),
        (batch.image_mask, "images_seq_mask_rle"),
    ):
        assert values.int().tolist() == [expand(runs) for runs in golden[key]]
    assert batch.image_mask.dtype == batch.attention_mask.dtype == torch.bool
    assert [len(sample) for sample in samples] == golden["seq_lens"]
    if "images_shape" in golden:
        padded = torch.zeros(golden["images_shape"])
        for row, sample in zip(padded, samples, strict=True):
            stack = released_stack(sample)
            row[: len(stack)] = stack
        images = [i for name in golden["name"].split("+") for m in cases[name]["messages"] for i in m.get("images", ())]
        if not has_other_pixels(images):
            assert sha256(padded) == golden["images_f32_sha256"]
    assert torch.equal(batch.tiles, torch.cat([sample.tiles for sample in samples]))
    grids = [grid for row in golden.get("images_spatial_crop", []) for grid in row if grid != [0, 0]]
    assert not grids or batch.grids.tolist() == grids


def test_a_batch_needs_samples_that_fit_together(toy):
    sample = toy.encode([{"role": "user", "content": "hi"}])
    with pytest.raises(UserError, match="at least one sample"):
        collate([])
    with pytest.raises(UserError, match="pad must be left or right"):
        collate([sample], pad="middle")
    with pytest.raises(UserError, match=r"share their pad_id, got \[2, 9\]"):
        collate([sample, replace(sample, pad_id=9)])
    with pytest.raises(UserError, match="share their tokens along a tile"):
        collate([sample, replace(sample, layout=OverviewFirst.of_side(14))])


def test_a_given_pad_id_wins(toy):
    short, long = (toy.encode([{"role": "user", "content": text}]) for text in ("a", "a longer text"))
    batch = collate([short, long], pad="right", pad_id=7)
    assert batch.input_ids[0, -1] == 7
    assert batch.labels[0, -1] == -100
