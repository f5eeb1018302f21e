"""Documents: no template, nothing stripped, everything but images trained on."""

from __future__ import annotations

import pytest
from PIL import Image

from vl2.errors import UserError
from vl2.process.messages import to_turns
from vl2.process.sample import IGNORE_ID

TEXT = "  铁 is a metal.\n\n<|User|>: no template <image>\n"


def document(*parts: object) -> list[dict[str, object]]:
    content = [{"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": part}
               for part in parts]  # fmt: skip
    return [{"role": "document", "content": content}]


def test_a_text_is_encoded_between_bos_and_eos_and_all_of_it_is_trained_on(toy) -> None:
    tokenizer = toy.tokenizer
    ids = [tokenizer.bos_id, *tokenizer.encode(TEXT), tokenizer.eos_id]
    for mask_prompt in (True, False):
        sample = toy.encode([{"role": "document", "content": TEXT}], train=True, mask_prompt=mask_prompt)
        assert sample.input_ids.tolist() == ids
        assert sample.labels.tolist() == ids
    assert tokenizer.user_id not in ids
    assert tokenizer.image_id not in ids
    assert toy.encode(document(TEXT)).input_ids.tolist() == ids[:-1]


def test_images_stand_where_they_are_and_are_not_trained_on(toy) -> None:
    picture = Image.new("RGB", (60, 40))
    sample = toy.encode(document("One.\n", picture, picture, "\nTwo."), train=True)
    tokenizer = toy.tokenizer
    texts = [[tokenizer.bos_id, *tokenizer.encode("One.\n")], [*tokenizer.encode("\nTwo."), tokenizer.eos_id]]
    visual = int(sample.image_mask.sum())
    assert visual > 0
    assert sample.input_ids.tolist() == [*texts[0], *[tokenizer.image_id] * visual, *texts[1]]
    assert sample.labels.tolist() == [*texts[0], *[IGNORE_ID] * visual, *texts[1]]
    assert len(sample.grid_list) == 2


def test_images_beside_the_text_stand_where_it_says(toy) -> None:
    first, second = Image.new("RGB", (60, 40)), Image.new("RGB", (30, 50))
    beside = [{"role": "document", "content": "One.\n<image><image>\nTwo.", "images": [first, second]}]
    [turn] = to_turns(beside)
    assert turn.images == (first, second)
    within = toy.encode(document("One.\n", first, second, "\nTwo."), train=True)
    assert toy.encode(beside, train=True).input_ids.tolist() == within.input_ids.tolist()


def test_neighbouring_texts_are_joined_as_they_are(toy) -> None:
    [turn] = to_turns(document("a", "b ", " c"))
    assert turn.pieces == ("ab  c",)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([{"role": "user", "content": "hi"}, *document("x")], "a document must be the only message, got 2 messages"),
        ([*document("x"), {"role": "assistant", "content": "hi"}], "a document must be the only message, got 2"),
        (document(""), "message 0: the document is empty"),
        (document(), "message 0: the document is empty"),
        (
            [{"role": "document", "content": "no place", "images": [Image.new("RGB", (4, 4))]}],
            "message 0: 0 <image> in the text, but 1 images",
        ),
        ([{"role": "document", **document("x")[0], "images": []}], "message 0: content must be a string beside an im"),
        ([{"role": "document"}], "message 0: content must be a string or a list of parts, got nothing"),
    ],
)
def test_a_document_stands_alone_and_says_something(messages: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        to_turns(messages)
