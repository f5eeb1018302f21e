"""Streaming, stopping, sessions, limits and cancellation, on a golden checkpoint."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.reference import CHECKPOINTS, IMAGES, messages_of, reference_vlm
from vl2.errors import UserError
from vl2.infer.answer_stream import AnswerStream
from vl2.infer.reply import Reply, Usage
from vl2.infer.sequence import Limits
from vl2.infer.vlm import VLM, Request, choose_device, choose_dtype, load
from vl2.process.sample import Sample
from vl2.process.tokenizer import TextTooLong

SQUARE = str(IMAGES / "square384.png")


@pytest.fixture
def vlm() -> VLM:
    base = reference_vlm("base")
    return VLM(base.model, base.processor, folder=base.folder)


def limited(vlm: VLM, **changes: Any) -> VLM:
    vlm.limits = replace(vlm.limits, **changes)
    return vlm


def test_streamed_pieces_are_the_reply(vlm: VLM) -> None:
    stream = vlm.stream("What is this?", [SQUARE], max_new_tokens=20)
    pieces = list(stream)
    reply = vlm.chat("What is this?", [SQUARE], max_new_tokens=20)
    assert len(pieces) > 5
    assert "".join(pieces).strip() == reply.text
    assert stream.reply == reply


def test_a_stream_has_the_reply_as_far_as_it_came(vlm: VLM) -> None:
    stream = vlm.stream("What is this?", [SQUARE], max_new_tokens=20)
    with pytest.raises(UserError, match="no reply before the first piece"):
        _ = stream.reply
    pieces = [next(stream), next(stream)]
    stream.close()
    assert (stream.reply.text, stream.reply.finish_reason) == ("".join(pieces).strip(), "cancelled")
    assert list(stream) == []


def test_a_stop_string_ends_the_answer_before_it(vlm: VLM) -> None:
    whole = vlm.chat("What is this?", [SQUARE], max_new_tokens=20)
    stop = whole.text[8:11]
    cut = vlm.chat("What is this?", [SQUARE], max_new_tokens=20, stop=[stop, "never said"])
    assert cut.finish_reason == "stop"
    assert cut.text == whole.text[: whole.text.index(stop)].strip()
    assert cut.token_ids == whole.token_ids[: len(cut.token_ids)]


class Letters:
    """A tokenizer whose id n is the n-th character of a text."""

    def __init__(self, text: str) -> None:
        self.text = text

    def stream(self) -> Letters:
        return self

    def push(self, token_id: int) -> str:
        return self.text[token_id]

    def flush(self) -> str:
        return ""


@given(text=st.text("abc", max_size=30), stops=st.lists(st.text("abc", min_size=1, max_size=4), max_size=3))
@settings(derandomize=True)
def test_no_part_of_a_stop_string_is_ever_given_out(text: str, stops: list[str]) -> None:
    stream = AnswerStream(Letters(text), stops)  # type: ignore[arg-type]
    given_out = ""
    for i in range(len(text)):
        given_out += stream.push(i)
        if stream.is_stopped:
            break
    given_out += stream.finish()
    # The first stop string to be complete, read letter by letter, ends the text.
    ends = [(text.index(s) + len(s), text.index(s)) for s in stops if s in text]
    first_end = min((end for end, _ in ends), default=None)
    expected = text if first_end is None else text[: min(start for end, start in ends if end == first_end)]
    assert given_out == stream.text == expected


def test_the_end_token_ends_the_answer_and_is_not_in_the_text(vlm: VLM) -> None:
    eos = vlm.processor.tokenizer.eos_id
    free = vlm.chat("Hello", max_new_tokens=3)
    row = free.token_ids[1]
    head = vlm.model.language.lm_head.weight
    before = head[eos].clone()
    with torch.no_grad():
        head[eos] = head[row] * 1.01  # the second token becomes the end
    try:
        reply = vlm.chat("Hello", max_new_tokens=9)
    finally:
        with torch.no_grad():
            head[eos] = before
    assert reply.finish_reason == "stop"
    assert reply.token_ids[-1] == eos
    assert "｜" not in reply.text


def test_sampling_depends_on_the_seed_and_not_on_the_batch(vlm: VLM) -> None:
    def ask(seed: int) -> Request:
        from vl2.infer.sampling import GenerateOptions

        options = GenerateOptions(max_new_tokens=12, temperature=1.5, top_p=0.9, seed=seed)
        return Request(messages=[{"role": "user", "content": "Tell me"}], options=options)

    alone = [vlm.batch([ask(seed)])[0].token_ids for seed in (1, 2, 3)]
    together = [reply.token_ids for reply in vlm.batch([ask(1), ask(2), ask(3), ask(1)])]
    assert together == [*alone, alone[0]]
    assert len(set(alone)) == 3


def test_requests_of_any_mix_run_together(vlm: VLM) -> None:
    requests = [messages_of("base", case) for case in ("text", "three", "tiled", "text", "two")]
    one_by_one = [vlm.generate(r, max_new_tokens=6).token_ids for r in requests]
    limited(vlm, max_num_seqs=2)
    assert [r.token_ids for r in vlm.batch(requests, max_new_tokens=6)] == one_by_one
    assert vlm.batch([]) == []


def test_usage_counts_text_and_visual_tokens(vlm: VLM) -> None:
    reply = vlm.generate(messages_of("base", "single"), max_new_tokens=5)
    assert reply.usage == Usage(prompt_tokens=64, visual_tokens=49, completion_tokens=5)
    assert reply.usage.total_tokens == 69
    assert len(reply.token_ids) == 5


def test_a_cancelled_batch_keeps_what_it_has(vlm: VLM) -> None:
    steps = iter([False] * 5 + [True] * 99)
    requests = [messages_of("base", "text")] * 3
    replies = limited(vlm, max_num_seqs=2).batch(requests, max_new_tokens=20, is_cancelled=lambda: next(steps))
    assert [r.finish_reason for r in replies] == ["cancelled"] * 3
    assert 0 < len(replies[0].token_ids) < 20
    assert replies[2].token_ids == ()


def test_a_closed_stream_does_no_more_work(vlm: VLM) -> None:
    calls = []
    handle = vlm.model.language.lm_head.register_forward_hook(lambda *_: calls.append(1))
    stream = vlm.stream("Hello", max_new_tokens=50)
    next(stream)
    stream.close()
    handle.remove()
    assert len(calls) < 10


def test_logits_are_computed_for_the_last_position_only(vlm: VLM) -> None:
    rows = []
    handle = vlm.model.language.lm_head.register_forward_hook(lambda _m, x, _y: rows.append(x[0].numel()))
    vlm.generate(messages_of("base", "tiled"), max_new_tokens=3)
    handle.remove()
    assert rows == [vlm.model.config.language_config.hidden_size] * 3


def test_text_that_cannot_fit_is_not_tokenized(vlm: VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    limited(vlm, max_context=60)
    monkeypatch.setattr(vlm.processor.tokenizer, "encode", None)
    with pytest.raises(TextTooLong, match="the text has 3900000 characters: the context of 60 tokens holds at most"):
        vlm.chat("\u4e2d" * 3_900_000)


def test_a_prompt_beyond_the_context_is_refused_with_the_numbers(vlm: VLM) -> None:
    limited(vlm, max_context=60)
    with pytest.raises(UserError, match=r"has 64 tokens \(49 visual\), the context is 60"):
        vlm.generate(messages_of("base", "single"))


def test_an_answer_ends_where_the_context_does(vlm: VLM) -> None:
    reply = limited(vlm, max_context=70).generate(messages_of("base", "single"), max_new_tokens=50)
    assert len(reply.token_ids) == 6
    assert reply.finish_reason == "length"


def test_a_session_remembers_turns_and_images(vlm: VLM) -> None:
    chat = vlm.session(system="Be brief.")
    first = chat.ask("What is this?", [SQUARE], max_new_tokens=6)
    second = chat.ask("And its colour?", max_new_tokens=6)
    whole = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image", "image": SQUARE}, {"type": "text", "text": "What is this?"}]},
        {"role": "assistant", "content": first.text},
        {"role": "user", "content": "And its colour?"},
    ]
    assert second.token_ids == vlm.generate(whole, max_new_tokens=6).token_ids
    assert second.usage.visual_tokens == first.usage.visual_tokens > 0
    other = vlm.session()
    other.messages = chat.messages[:-2]
    assert other.ask("And its colour?", max_new_tokens=6) == second
    assert other.messages == chat.messages
    chat.clear()
    assert chat.messages == [{"role": "system", "content": "Be brief."}]


def test_a_failed_turn_is_forgotten_and_a_streamed_one_kept(vlm: VLM) -> None:
    chat = vlm.session()
    with pytest.raises(UserError):
        chat.ask("What?", ["/no/such.png"])
    assert chat.messages == []
    text = "".join(chat.stream("Hello", max_new_tokens=5))
    assert chat.messages[-1] == {"role": "assistant", "content": text.strip()}


def test_an_unknown_option_is_an_error_that_lists_the_options(vlm: VLM) -> None:
    with pytest.raises(UserError, match="unknown option temprature: the options are max_new_tokens, temperature"):
        vlm.chat("Hello", temprature=1.0)  # type: ignore[call-arg]


def grounded_reply(text: str, sizes: tuple[tuple[int, int], ...]) -> Reply:
    usage = Usage(prompt_tokens=1, visual_tokens=0, completion_tokens=1)
    return Reply(text=text, token_ids=(1,), finish_reason="stop", usage=usage, image_sizes=sizes)


def test_boxes_come_in_pixels_of_the_image_they_are_asked_for() -> None:
    text = "<|ref|>mug<|/ref|><|det|>[[0, 0, 999, 999], [500, 250, 750, 500]]<|/det|>"
    reply = grounded_reply(text, ((100, 50), (640, 480)))
    assert next(box.xyxy_px for box in reply.boxes) == (0, 0, 640, 480)
    assert {box.image_index for box in reply.boxes} == {1}
    assert reply.boxes_on(0)[0].xyxy_px == (0, 0, 100, 50)
    assert reply.boxes[1].label == "mug"
    assert grounded_reply(text, ()).boxes == []
    data = json.loads(json.dumps(reply.to_dict()))
    assert data["boxes"][1]["xyxy_999"] == [500, 250, 750, 500]
    assert data["text"] == text


def test_drawing_frames_the_box_on_a_copy() -> None:
    image = Image.new("RGB", (200, 100), "white")
    reply = grounded_reply("<|ref|>a<|/ref|><|det|>[[250, 250, 750, 750]]<|/det|>", ((200, 100),))
    drawn = reply.draw(image)
    assert drawn.size == image.size
    assert image.getcolors() == [(20000, (255, 255, 255))]
    assert drawn.getpixel((50, 70)) != (255, 255, 255)  # left edge
    assert drawn.getpixel((100, 90)) == (255, 255, 255)  # outside
    assert reply.draw(SQUARE).size == (384, 384)


def test_locate_and_describe_ask_in_the_trained_form(vlm: VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Sample] = []
    original = type(vlm.processor).encode
    monkeypatch.setattr(
        type(vlm.processor), "encode", lambda self, *a, **k: asked.append(original(self, *a, **k)) or asked[-1]
    )
    assert isinstance(vlm.locate("the red mug", SQUARE, max_new_tokens=2), list)
    vlm.describe(SQUARE, grounded=True, max_new_tokens=2)
    texts = [vlm.processor.tokenizer.decode(s.input_ids.tolist(), skip_special=False) for s in asked]
    assert texts[0].endswith("<|ref|>the red mug<|/ref|>.\n\n<|Assistant|>:")
    assert "\n<|grounding|>" in texts[1]
    with pytest.raises(UserError, match="query is empty"):
        vlm.locate("  ", SQUARE)


@pytest.mark.parametrize(
    ("keywords", "named"),
    [
        ({"device": "tpu"}, "device"),
        ({"device": "cuda:99"}, "device cuda:99 is not available"),
        ({"dtype": "int3"}, "dtype must be auto, float32, bfloat16, float16"),
        ({"tiling": "maybe"}, "tiling must be"),
        ({"max_tiles": 0}, "max_tiles"),
    ],
)
def test_a_wrong_setting_is_named_with_what_is_allowed(keywords: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        load(CHECKPOINTS / "tiny", **keywords)


@pytest.mark.parametrize("name", ["no-such-folder", "./x/y/z", "", str(CHECKPOINTS / "tiny" / "config.json")])
def test_a_name_that_is_no_model_is_refused(name: str) -> None:
    with pytest.raises(UserError):
        load(name)


def test_automatic_type_is_the_checkpoints_own() -> None:
    assert choose_dtype("auto", choose_device("cpu")) is None
    assert reference_vlm("tiny").model.dtype == torch.float32
    assert choose_dtype("bfloat16", torch.device("cpu")) == torch.bfloat16


def test_limits_are_checked() -> None:
    with pytest.raises(UserError, match="prefill_chunk must be at least 1"):
        Limits(prefill_chunk=0)


def test_the_built_in_model_answers_without_files_or_network() -> None:
    nano = load("nano", device="cpu")
    reply = nano.chat("What is in this picture?", [SQUARE], max_new_tokens=8)
    assert reply.usage.visual_tokens == 4 * 6 * (4 * 6 + 1) + 6 * 7 + 1, "16 tiles, as 384 px count as 576"
    assert len(reply.token_ids) <= 8


def test_a_long_list_is_encoded_a_window_at_a_time(vlm: VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    limited(vlm, max_num_seqs=1)
    log: list[str] = []
    original = type(vlm.processor).encode
    monkeypatch.setattr(
        type(vlm.processor), "encode", lambda self, *a, **k: log.append("encode") or original(self, *a, **k)
    )
    handle = vlm.model.language.lm_head.register_forward_hook(lambda *_: log.append("token"))
    requests = [[{"role": "user", "content": f"Count to {n}"}] for n in range(11)]
    replies = vlm.batch(requests, max_new_tokens=2)
    handle.remove()
    monkeypatch.undo()
    assert log == ["encode"] * 8 + ["token"] * 16 + ["encode"] * 3 + ["token"] * 6
    assert [r.token_ids for r in replies] == [vlm.generate(r, max_new_tokens=2).token_ids for r in requests]
