"""The sizes that `vl2 inspect` prints are the published ones."""

from __future__ import annotations

import pytest

from vl2.checkpoint.model_size import ModelSize
from vl2.config import preset

# Parameters of the released files (base without its 29 x 72 expert biases), and of the language model per token.
PUBLISHED = {
    "tiny": (3_370_501_440, 0.574e9),
    "small": (16_148_349_504, 2.451e9),
    "base": (27_480_132_160 + 29 * 72, 4.124e9),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts_are_the_published_ones(name: str) -> None:
    size = ModelSize.of(preset(name))
    total, active = PUBLISHED[name]
    assert size.parameters == total
    assert size.language_active == pytest.approx(active, rel=1e-3)


@pytest.mark.parametrize(("name", "expected"), [("tiny", 12 * 2 * 1280), ("small", 27 * (512 + 64))])
def test_the_cache_holds_keys_and_values_or_only_latent_and_rotary_key(name: str, expected: int) -> None:
    assert ModelSize.of(preset(name)).cache_values_per_token == expected


def test_nano_is_small_enough_to_ship() -> None:
    assert ModelSize.of(preset("nano")).parameters < 20e6
