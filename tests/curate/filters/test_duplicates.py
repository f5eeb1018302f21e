"""Duplicates: copies are found however they were saved, different things are not, and nothing is compared with all."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from tests.curate.filters.examples import encoded, page, record, scene
from vl2.curate.filters.duplicate_images import DuplicateImage, HammingIndex, distance, perceptual_hash
from vl2.curate.filters.duplicate_texts import DuplicateText, MinHashIndex, signature, similarity
from vl2.data.record import StoredImage
from vl2.errors import UserError


def recompressed(image: Image.Image) -> Image.Image:
    import io

    return Image.open(io.BytesIO(encoded(image, "JPEG", quality=40)))


COPIES = {
    "resized": lambda image: image.resize((image.width * 2 // 3, image.height * 2 // 3)),
    "recompressed": recompressed,
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.15),
    "less contrast": lambda image: ImageEnhance.Contrast(image).enhance(0.8),
}


@pytest.mark.parametrize("make", [scene, page])
@pytest.mark.parametrize("copy", COPIES)
def test_a_copy_is_found_and_other_pictures_are_not(make, copy: str) -> None:  # type: ignore[no-untyped-def]
    duplicates = DuplicateImage()
    originals = [make(seed) for seed in range(6)]
    for number, image in enumerate(originals):
        assert duplicates(record(f"r{number}", image)).kept
    for number, image in enumerate(originals):
        verdict = duplicates(record("copy", COPIES[copy](image).convert("RGB")))
        assert f"those of r{number}," in verdict.why


def test_the_hash_of_a_flat_picture_does_not_depend_on_rounding() -> None:
    assert {perceptual_hash(Image.new("RGB", (50, 70), color)) for color in ("white", "black", "#123456")} == {0}


def test_a_record_is_a_duplicate_only_if_all_its_images_are() -> None:
    duplicates = DuplicateImage()
    assert duplicates(record("a", scene(0), scene(1))).kept
    assert duplicates(record("b", scene(0), scene(2))).kept
    assert not duplicates(record("c", scene(2), scene(1))).kept
    assert duplicates(record("d")).kept
    assert duplicates(record("e")).kept
    broken = StoredImage(data=b"broken", width=9, height=9)
    assert "cannot read image" in duplicates(record("f", broken)).why


def test_several_questions_about_one_image_may_stay() -> None:
    duplicates = DuplicateImage(same_question=True)
    assert duplicates(record("a", scene(0), question="How many?")).kept
    assert duplicates(record("b", scene(0), question="What colour?")).kept
    assert not duplicates(record("c", scene(0), question="how MANY")).kept


def test_the_index_misses_nothing_within_the_distance() -> None:
    random = np.random.default_rng(0)
    hashes = [int.from_bytes(random.bytes(32), "big") for _ in range(300)]
    index = HammingIndex(max_distance=24)
    for value in hashes:
        index.add(value)
    for number, value in enumerate(hashes):
        flips = random.choice(256, size=int(random.integers(0, 30)), replace=False)
        wanted = value ^ sum(1 << int(bit) for bit in flips)
        expected = [n for n, other in enumerate(hashes) if distance(other, wanted) <= 24]
        assert index.near(wanted) == expected == ([number] if len(flips) <= 24 else [])
    with pytest.raises(UserError, match=r"max_distance must be in 0\.\.25"):
        HammingIndex(26)


def test_twenty_thousand_hashes_are_not_compared_with_each_other() -> None:
    random = np.random.default_rng(1)
    index = HammingIndex(max_distance=24)
    for _ in range(20_000):
        value = int.from_bytes(random.bytes(32), "big")
        assert not index.near(value)
        index.add(value)
    # All pairs would be 200 million.
    assert index.comparisons < 100_000


def test_pages_of_one_layout_are_not_compared_with_each_other() -> None:
    index = HammingIndex(max_distance=24)
    for seed in range(150):
        value = perceptual_hash(page(seed))
        assert not index.near(value)
        index.add(value)
    assert index.comparisons < 150 * 149 / 2 / 20


PROSE = (
    "A narrow street in the old town on a rainy evening, with lamps reflected in the wet stones, a man with a red "
    "umbrella walking away from the viewer, and two bicycles that lean against the wall of a closed bakery."
)


def test_near_texts_are_found_and_other_texts_are_not() -> None:
    duplicates = DuplicateText()
    assert duplicates(record("a", question="Describe.", answer=PROSE)).kept
    verdict = duplicates(record("b", question="Describe!", answer=PROSE.replace("closed", "small")))
    assert "its text is that of a, similarity 0.8" in verdict.why or "similarity 0.9" in verdict.why
    assert duplicates(record("c", answer="The bakery opens at seven, and its bread is sold out by ten.")).kept
    assert duplicates(record("d", scene(0), answer=PROSE)).kept
    assert duplicates(record("e", scene(0), answer=PROSE)).kept
    with_images = DuplicateText(with_images=True)
    assert with_images(record("d", scene(0), answer=PROSE)).kept
    assert not with_images(record("e", scene(1), answer=PROSE)).kept


def test_short_and_chinese_texts_are_compared_too() -> None:
    duplicates = DuplicateText()
    assert duplicates(record("a", question="Hi", answer="Hello")).kept
    assert not duplicates(record("b", question="hi!", answer="hello.")).kept
    assert duplicates(record("c", question="你好", answer="图片里有一只灰色的猫")).kept
    assert not duplicates(record("d", question="你好", answer="图片里有一只灰色的猫。")).kept
    assert duplicates(record("e", question="?", answer="!")).kept


def test_the_similarity_is_near_that_of_the_shingle_sets() -> None:
    words = [f"w{number}" for number in range(400)]
    first, second = signature(" ".join(words)), signature(" ".join(words[:300]))
    assert first is not None
    assert second is not None
    assert similarity(first, second) == pytest.approx(298 / 398, abs=0.12)


def test_four_thousand_texts_off_a_few_templates_are_not_compared_with_each_other() -> None:
    random = np.random.default_rng(2)
    index = MinHashIndex(0.95)
    templates = [signature(PROSE.replace("red", f"colour{number}")) for number in range(10)]
    for number in range(4_000):
        template = templates[number % 10]
        assert template is not None
        varied = template.copy()
        varied[random.choice(128, 40, replace=False)] = random.integers(0, 1 << 31, 40)
        index.nearest(varied)
        index.add(varied)
    assert index.comparisons < 4_000 * 64 * 16
