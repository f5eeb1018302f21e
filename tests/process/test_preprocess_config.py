from __future__ import annotations

import json
from dataclasses import replace

import pytest

from vl2.errors import UserError
from vl2.process.preprocess_config import PreprocessConfig

from .golden import REFERENCE, TOYS

PATHS = [REFERENCE / "checkpoints" / folder / "processor_config.json" for folder in TOYS.values()]
GIVEN = json.loads(PATHS[0].read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.parent.name)
def test_released_keys_are_written_back_unchanged(path):
    config = PreprocessConfig.from_file(path)
    given = json.loads(path.read_text(encoding="utf-8"))
    assert config.to_dict() == given
    assert list(config.to_dict()) == list(given)


@pytest.mark.parametrize(("path", "side"), list(zip(PATHS, [14, 4, 2], strict=True)), ids=lambda value: str(value)[-8:])
def test_tokens_per_side_follow_from_the_file(path, side):
    config = PreprocessConfig.from_file(path)
    assert config.tokens_per_side == side
    assert config.padding_color == (127, 127, 127)


def test_a_changed_value_is_written():
    config = replace(PreprocessConfig.from_dict(GIVEN), image_mean=(0.4, 0.4, 0.4), mask_prompt=True)
    assert config.to_dict()["image_mean"] == [0.4, 0.4, 0.4]
    assert config.to_dict()["mask_prompt"] is True
    assert config.padding_color == (102, 102, 102)


def test_missing_keys_take_the_released_defaults():
    short = {key: GIVEN[key] for key in ("candidate_resolutions", "patch_size", "downsample_ratio")}
    config = PreprocessConfig.from_dict(short)
    assert config.image_std == (0.5, 0.5, 0.5)
    assert config.to_dict() == short


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"candidate_resolutions": None}, "list of \\[width, height\\]"),
        ({"candidate_resolutions": []}, "at least one size"),
        ({"candidate_resolutions": [[384, 384], [384, 400]]}, "multiples of the tile"),
        ({"candidate_resolutions": [[1, 2, 3]]}, "list of"),
        ({"patch_size": 0}, "patch_size must be"),
        ({"downsample_ratio": "2"}, "downsample_ratio must be"),
        ({"image_mean": [0.5]}, "three numbers"),
        ({"image_std": [0, 1, 1]}, "positive"),
        ({"ignore_id": 0}, "ignore_id must be -100, the only value supported"),
        ({"sft_format": "plain"}, "sft_format must be 'deepseek'"),
        ({"image_token": "<img>"}, "image_token must be"),
        ({"image_scale": "large"}, "image_scale must be a number, got 'large'"),
        ({"image_scale": True}, "image_scale must be a number"),
        ({"image_scale": 0}, "image_scale must be above 0 and at most 8, got 0"),
        ({"image_scale": 9}, "image_scale must be above 0 and at most 8, got 9"),
        ({"image_scale": 10**400}, "image_scale is too large a number"),
        ({"image_mean": [10**400, 0, 0]}, "three numbers"),
        ({"candidate_resolutions": [[float("inf"), 384]]}, "list of"),
    ],
)
def test_values_that_cannot_be_followed_are_refused(changes, why):
    with pytest.raises(UserError, match=why):
        PreprocessConfig.from_dict({**GIVEN, **changes})


def test_a_missing_or_broken_file_is_a_user_error(tmp_path):
    path = tmp_path / "processor_config.json"
    with pytest.raises(UserError, match=r"no processor_config\.json"):
        PreprocessConfig.from_file(path)
    for content, why in (
        ("{", "not valid JSON"),
        ("[]", "must hold a JSON object"),
        ("{}", "has no candidate_resolutions"),
    ):
        path.write_text(content)
        with pytest.raises(UserError, match=why):
            PreprocessConfig.from_file(path)
