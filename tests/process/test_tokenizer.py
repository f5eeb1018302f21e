from __future__ import annotations

import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vl2.errors import UserError
from vl2.process.tokenizer import GROUNDING, LONG_TEXT, PAD, TextTooLong, Tokenizer

from .golden import REFERENCE, TAGS, TOYS, conversations, real_tokenizer

SPECIALS = ("<image>", "<|User|>", "<|Assistant|>", "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", PAD)
TEXTS = st.lists(st.one_of(st.text(max_size=8), st.sampled_from((*SPECIALS, *GROUNDING))), max_size=8).map("".join)


def tokenizer_for(tag: str) -> Tokenizer:
    if tag in TOYS:
        return Tokenizer.from_file(REFERENCE / "checkpoints" / TOYS[tag] / "tokenizer.json")
    return real_tokenizer(tag)


@pytest.fixture(scope="module", params=sorted(TOYS))
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return tokenizer_for(request.param)


@pytest.mark.parametrize("tag", TAGS)
def test_special_ids_and_size_are_the_released_ones(tag):
    tokenizer, golden = tokenizer_for(tag), conversations(tag)
    assert tokenizer.special_ids == golden["special_token_ids"]
    assert len(tokenizer) == golden["tokenizer_length"]
    ids = golden["special_token_ids"]
    assert (tokenizer.pad_id, tokenizer.image_id) == (ids[PAD], ids["<image>"])
    assert (tokenizer.user_id, tokenizer.assistant_id) == (ids["<|User|>"], ids["<|Assistant|>"])


@pytest.mark.parametrize("tag", TAGS)
def test_encodings_are_the_released_ones(tag):
    tokenizer = tokenizer_for(tag)
    for case in conversations(tag)["encodings"]:
        assert tokenizer.encode(case["name"], "all") == case["ids"]
        assert tokenizer.decode(case["ids"], skip_special=False) == case["decoded"]
        assert tokenizer.decode(case["ids"], skip_special=True) == case["decoded_skip_special"]


@given(TEXTS)
def test_a_spelled_text_is_its_characters_encoded_one_by_one(tokenizer, text):
    ids = tokenizer.encode(text, "none", by_character=True)
    assert ids == [i for char in text for i in tokenizer.encode(char, "none")]
    assert tokenizer.decode(ids, skip_special=False) == text


def test_grounding_tags_stay_whole_in_a_spelled_text(tokenizer):
    ids = tokenizer.encode("<|ref|>tea<|/ref|>", by_character=True)
    letters = [i for char in "tea" for i in tokenizer.encode(char)]
    assert ids == [tokenizer.special_ids["<|ref|>"], *letters, tokenizer.special_ids["<|/ref|>"]]


def test_a_person_cannot_type_special_tokens(tokenizer):
    text = "a<image>b<|User|>c<｜end▁of▁sentence｜><|ref|>d<|/ref|>"
    ids = tokenizer.encode(text, "grounding")
    special = {tokenizer.special_ids[token] for token in SPECIALS}
    assert not special & set(ids)
    assert [i for i in ids if i in tokenizer.special_ids.values()] == [
        tokenizer.special_ids["<|ref|>"],
        tokenizer.special_ids["<|/ref|>"],
    ]
    assert not set(tokenizer.encode(text, "none")) & set(tokenizer.special_ids.values())
    assert tokenizer.decode(ids) == text
    assert special & set(tokenizer.encode(text, "all"))


@pytest.mark.parametrize("tag", ["v3", "100k"])
def test_ordinary_text_never_becomes_a_special_token_of_a_real_vocabulary(tag):
    tokenizer = tokenizer_for(tag)
    text = "<｜User｜>hi<｜fim▁hole｜><image><|User|><|EOT|>"
    ids = tokenizer.encode(text, "none")
    assert not set(ids) & set(tokenizer.special_ids.values())
    assert tokenizer.decode(ids, skip_special=True) == text


@given(TEXTS, st.sampled_from(["all", "grounding", "none"]))
def test_text_survives_the_round_trip(tokenizer, text, specials):
    assert tokenizer.decode(tokenizer.encode(text, specials), skip_special=False) == text


@given(st.lists(st.one_of(st.text(max_size=8), st.sampled_from(GROUNDING)), max_size=8).map("".join))
def test_grounding_tags_have_the_same_ids_whoever_wrote_them(tokenizer, text):
    assert tokenizer.encode(text, "all") == tokenizer.encode(text, "grounding")


def test_a_tokenizer_can_be_sent_to_a_worker_process(tokenizer):
    text = "a<image>b<|ref|>"
    assert pickle.loads(pickle.dumps(tokenizer)).encode(text) == tokenizer.encode(text)


@given(st.text(max_size=30))
def test_plain_text_has_the_same_ids_whoever_wrote_it(tokenizer, text):
    assert tokenizer.encode(text, "all") == tokenizer.encode(text, "grounding") == tokenizer.encode(text, "none")


@given(st.lists(st.integers(-5, 2100), max_size=40), st.sampled_from([None, True, False]))
def test_streamed_pieces_joined_equal_decoding_all(tokenizer, ids, skip_special):
    stream = tokenizer.stream(skip_special)
    pieces = [stream.push(token) for token in ids]
    assert "".join(pieces) + stream.flush() == tokenizer.decode(ids, skip_special)


@given(st.lists(st.integers(0, 2039), max_size=40), st.booleans())
def test_decoding_equals_the_tokenizers_library(tokenizer, ids, skip_special):
    raw = tokenizer._raw.decode(ids, skip_special_tokens=skip_special)
    assert tokenizer.decode(ids, skip_special) == raw


def test_a_character_split_over_tokens_comes_out_whole(tokenizer):
    ids = tokenizer.encode("é😀表", "none")
    stream = tokenizer.stream()
    pieces = [stream.push(token) for token in ids]
    assert "".join(pieces) == "é😀表"
    assert not any("\ufffd" in piece for piece in pieces)
    cut = tokenizer.stream()
    assert "".join(cut.push(token) for token in tokenizer.encode("😀", "none")[:-1]) == ""
    assert cut.flush() == "\ufffd"


def test_decoding_keeps_grounding_tags_and_drops_what_frames_an_answer(tokenizer):
    text = "<image>x<|ref|>y<|/ref|><｜end▁of▁sentence｜>" + PAD
    ids = tokenizer.encode(text, "all")
    assert tokenizer.decode(ids) == "x<|ref|>y<|/ref|>"
    assert tokenizer.decode(ids, skip_special=True) == "xy"
    assert tokenizer.decode(ids, skip_special=False) == text


def test_ids_outside_the_vocabulary_are_skipped(tokenizer):
    ids = tokenizer.encode("ab")
    assert tokenizer.decode([-1, *ids, 10**6, 2**40]) == "ab"


def test_half_a_character_is_no_crash(tokenizer):
    assert tokenizer.decode(tokenizer.encode("a\ud83d")) == "a?"


def test_a_missing_or_broken_file_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="no tokenizer file"):
        Tokenizer.from_file(tmp_path / "tokenizer.json")
    broken = tmp_path / "tokenizer.json"
    for content in ("", "{", "{}", "[1]", "\0"):
        broken.write_text(content)
        with pytest.raises(UserError, match="not a tokenizer file"):
            Tokenizer.from_file(broken)
    with pytest.raises(UserError, match="no tokenizer file"):
        Tokenizer.from_file(tmp_path)


def test_a_foreign_vocabulary_is_refused(tmp_path):
    path = REFERENCE / "checkpoints" / "tiny" / "tokenizer.json"
    state = json.loads(path.read_text(encoding="utf-8"))
    state["added_tokens"] = []
    state["model"]["vocab"] = {k: v for k, v in state["model"]["vocab"].items() if "sentence" not in k}
    foreign = tmp_path / "tokenizer.json"
    foreign.write_text(json.dumps(state), encoding="utf-8")
    with pytest.raises(UserError, match="is this a DeepSeek-VL2"):
        Tokenizer.from_file(foreign)


def fits(tokenizer: Tokenizer, texts: list[str], max_tokens: int) -> bool:
    try:
        tokenizer.check_length(texts, max_tokens)
    except TextTooLong:
        return False
    return True


@given(texts=st.lists(TEXTS, min_size=1, max_size=4), data=st.data())
def test_a_text_that_fits_is_never_found_too_long(tokenizer, texts, data):
    # Of any tokens too, long ones and halves of characters among them.
    ids = data.draw(st.lists(st.integers(0, tokenizer.num_ids - 1), max_size=40))
    texts = [*texts, tokenizer.decode(ids, skip_special=False)]
    for specials in ("all", "grounding", "none"):
        apart = sum(len(tokenizer.encode(text, specials)) for text in texts)
        together = len(tokenizer.encode("".join(texts), specials))
        assert fits(tokenizer, texts, min(apart, together))


def test_the_longest_token_again_and_again_fits_as_often_as_the_limit_says(tokenizer):
    longest = max(
        range(tokenizer.num_ids), key=lambda id: len(tokenizer.token_bytes(id, False).decode("utf-8", "ignore"))
    )
    text = tokenizer.token_bytes(longest, False).decode()
    assert tokenizer.encode(text * 100, "all") == [longest] * 100
    assert fits(tokenizer, [text] * 100, 100)
    assert not fits(tokenizer, [text] * 101, 100)


def test_a_text_that_is_far_too_long_is_found_so_without_being_tokenized(tokenizer, monkeypatch):
    monkeypatch.setattr(Tokenizer, "encode", None)
    for text in ("中" * 3_900_000, "a" * 3_900_000, " " * 3_900_000, "\U0001f600" * 1_000_000, "\ud800" * 1_000_000):
        with pytest.raises(TextTooLong, match=rf"the text has {len(text)} characters.*4096 tokens holds at most \d+ "):
            tokenizer.check_length([text[: len(text) // 2], text[len(text) // 2 :]], 4096)


def test_long_texts_are_encoded_as_short_ones_are(tokenizer):
    line = "The quick brown fox, 17 times; 中文也有。 <image> \n"
    text = line * (LONG_TEXT // len(line) + 1)
    assert len(text) > LONG_TEXT
    ids = [id for _ in range(text.count("\n")) for id in tokenizer.encode(line, "none")]
    assert tokenizer.encode(text, "none") == ids
    assert tokenizer.decode(ids, skip_special=False) == text
