"""What is kept between requests changes no answer: encoded images, prompts that begin alike."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from tests.reference import CASES, assert_near, case_of, reference_vlm, sample_of
from vl2.errors import UserError
from vl2.infer import prefix_cache
from vl2.infer.byte_lru import ByteLRU
from vl2.infer.image_tokens import EncoderCache, embed_prompt, encode_images, images_of
from vl2.infer.prefill import Prefill, Reuse, prefill
from vl2.infer.prefix_cache import chunk_ends
from vl2.infer.vlm import VLM, load
from vl2.model import Cache
from vl2.process.sample import Sample

NOTHING = {"encoder_bytes": 0, "prefix_bytes": 0}


@cache
def shared(dtype: str, form: str = "auto") -> VLM:
    return load("nano", device="cpu", dtype=dtype, cache=form)


def fresh(dtype: str = "bfloat16", **bounds: int) -> VLM:
    base = shared(dtype)
    return VLM(base.model, base.processor, folder=base.folder, reuse=Reuse(**bounds))


TILES = 10  # of such a picture, in a grid of three by three, with the overview


def picture(seed: int = 0, side: int = 330) -> Image.Image:
    pixels = torch.randint(0, 255, (20, 20, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(pixels.numpy()).resize((side, side))


@contextmanager
def tiles_encoded(vlm: VLM) -> Iterator[list[int]]:
    """Collect how many tiles each run of the encoder had."""
    counts: list[int] = []
    handle = vlm.model.vision.register_forward_hook(lambda _m, x, _y: counts.append(len(x[0])))
    yield counts
    handle.remove()


def logits_of(vlm: VLM, sample: Sample, reuse: Reuse | None, longest: int | None = None) -> tuple[Tensor, int]:
    row = vlm.runner.cache_pool(1, len(sample), len(sample)).take(len(sample))
    with torch.inference_mode():
        prompt = Prefill(
            vlm.runner,
            sample,
            row,
            opening_id=vlm.processor.tokenizer.opening_id,
            max_chunk=longest,
            reuse=reuse,
        )
        return prompt.finish(), prompt.num_reused


def turns(*contents: Any) -> list[dict[str, Any]]:
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]


def with_images(text: str, *images: Image.Image) -> list[dict[str, Any]]:
    return [*({"type": "image", "image": image} for image in images), {"type": "text", "text": text}]


LONG = "It is a long answer, which says the same again and again. " * 10
CONVERSATIONS = {
    "another question about the image": [
        turns(with_images("What is this?", picture())),
        turns(with_images("How many are there?", picture())),
    ],
    "three turns": [
        turns(with_images("What is this?", picture())),
        turns(with_images("What is this?", picture()), LONG, "And what else?"),
        turns(with_images("What is this?", picture()), LONG, "And what else?", LONG, "Are you sure?"),
    ],
    "a second image in the second turn": [
        turns(with_images("What is this?", picture(0))),
        turns(with_images("What is this?", picture(0)), LONG, with_images("And this?", picture(1))),
        turns(with_images("What is this?", picture(0)), LONG, with_images("And this?", picture(2))),
    ],
    "text alone": [turns(LONG + "Why?"), turns(LONG + "Why?", LONG, "How?"), turns(LONG + "Why?", LONG, "When?")],
}


@pytest.mark.parametrize(
    ("dtype", "longest", "form"),
    [
        ("float32", None, "auto"),
        ("bfloat16", None, "auto"),
        ("bfloat16", 96, "auto"),
        ("float32", 96, "int8"),
        ("bfloat16", 96, "int8"),
    ],
)
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_what_is_kept_changes_no_bit_of_the_logits(name: str, dtype: str, longest: int | None, form: str) -> None:
    vlm, reuse, reused = shared(dtype, form), Reuse(), []
    for messages in CONVERSATIONS[name]:
        sample = vlm.processor.encode(messages)
        plain, _ = logits_of(vlm, sample, None, longest)
        kept, num_reused = logits_of(vlm, sample, reuse, longest)
        assert torch.equal(kept, plain)
        reused.append(num_reused / len(sample))
    assert reused[0] == 0
    assert min(reused[1:]) > 0.2


@pytest.mark.parametrize(("size", "case"), CASES)
def test_chunks_give_what_one_chunk_gives(size: str, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix_cache, "MIN_CHUNK", 1)
    vlm, sample = reference_vlm(size), sample_of(size, case)
    ours, _ = logits_of(vlm, sample, None)
    row = Cache.allocate(vlm.model.config.language_config, 1, len(sample), dtype=vlm.model.dtype, device="cpu")
    with torch.inference_mode():
        assert_near(ours, prefill(vlm.runner, embed_prompt(vlm.runner, sample), row))
    assert int(ours.argmax()) == case_of(size, case)["generate"]["ids"][0]


def test_a_second_question_about_an_image_skips_the_encoder_and_reads_the_question_only() -> None:
    vlm, plain = fresh(), fresh(**NOTHING)
    image = picture()
    with tiles_encoded(vlm) as counts:
        vlm.chat("What is this?", [image], max_new_tokens=3)
        first = list(counts)
        second = vlm.chat("How many are there?", [image], max_new_tokens=3)
    assert sum(first) == TILES
    assert counts == first
    assert vlm.reuse.prefix.reused_tokens > second.usage.visual_tokens
    assert second.token_ids == plain.chat("How many are there?", [image], max_new_tokens=3).token_ids


def test_an_image_is_known_by_its_content_wherever_it_stands(tmp_path: Any) -> None:
    vlm = fresh(prefix_bytes=0)
    image = picture()
    image.save(tmp_path / "a.png")
    with tiles_encoded(vlm) as counts:
        vlm.chat("What is this?", [tmp_path / "a.png"], max_new_tokens=1)
        before = len(counts)
        vlm.chat("Which is larger?", [picture(1), image], max_new_tokens=1)
        assert sum(counts[before:]) == TILES  # the other image's
    assert (vlm.reuse.encoder.hits, vlm.reuse.encoder.misses) == (1, 2)


def test_the_same_pixels_on_another_grid_are_another_image() -> None:
    vlm = shared("float32")
    wide, high = (vlm.processor.encode(turns(with_images("?", Image.new("RGB", s)))) for s in ((600, 150), (150, 600)))
    (a,), (b,) = images_of(wide), images_of(high)
    assert a.tiles.shape == b.tiles.shape
    assert a.key() != b.key()


def test_images_of_a_request_are_encoded_each_by_itself() -> None:
    vlm = shared("bfloat16")
    one, other = (vlm.processor.encode(turns(with_images("?", picture(n)))) for n in (0, 1))
    both = vlm.processor.encode(turns(with_images("?", picture(0), picture(1))))
    with torch.inference_mode():
        alone = torch.cat([t for s in (one, other) if (t := encode_images(vlm.runner, s)) is not None])
        together = encode_images(vlm.runner, both)
    assert together is not None
    assert torch.equal(together, alone)


def test_a_session_reads_each_turn_once() -> None:
    vlm, plain = fresh(), fresh(**NOTHING)
    answers = []
    for each in (vlm, plain):
        chat = each.session()
        answers.append([chat.ask("What is this?", [picture()], max_new_tokens=8).token_ids])
        answers[-1] += [chat.ask("And now? " + LONG, max_new_tokens=8).token_ids for _ in range(3)]
    assert answers[0] == answers[1]
    assert vlm.reuse.prefix.reused_tokens > vlm.reuse.prefix.read_tokens
    assert plain.reuse.prefix.reused_tokens == 0


def test_a_batch_answers_the_same_with_what_was_kept() -> None:
    vlm, plain = fresh(), fresh(**NOTHING)
    requests = [turns(with_images(text, picture())) for text in ("What?", "Where?", "What?")]
    assert [r.token_ids for r in vlm.batch(requests, max_new_tokens=4)] == [
        plain.generate(r, max_new_tokens=4).token_ids for r in requests
    ]
    assert (vlm.reuse.encoder.hits, vlm.reuse.encoder.misses) == (0, 1)  # the prompts' beginning is known as a whole


def test_what_was_kept_of_other_weights_is_forgotten() -> None:
    base = load("nano", device="cpu")
    before = base.chat("What is this?", [picture()], max_new_tokens=2)
    with torch.no_grad():
        base.model.vision.patch_embed.proj.weight.mul_(3.0)
    base.refresh()
    assert base.reuse.encoder.nbytes == base.reuse.prefix.nbytes == 0
    with tiles_encoded(base) as counts:
        after = base.chat("What is this?", [picture()], max_new_tokens=2)
    assert sum(counts) == TILES
    assert after.usage == before.usage
    assert base.reuse.prefix.reused_tokens == 0


def test_the_memory_that_is_kept_is_bounded_and_small_bounds_change_no_answer() -> None:
    bounds = {"encoder_bytes": 300_000, "prefix_bytes": 1_500_000}
    vlm, plain = fresh(**bounds), fresh(**NOTHING)
    for seed in range(3):
        for text in ("What is this?", "Where is it?"):
            asked = (text, [picture(seed)])
            assert vlm.chat(*asked, max_new_tokens=2).token_ids == plain.chat(*asked, max_new_tokens=2).token_ids
    assert 0 < vlm.reuse.encoder.nbytes <= bounds["encoder_bytes"]
    assert 0 < vlm.reuse.prefix.nbytes <= bounds["prefix_bytes"]
    vlm.reuse.clear()
    assert vlm.reuse.encoder.nbytes == vlm.reuse.prefix.nbytes == 0
    with pytest.raises(UserError, match=r"must be at least 0 \(0 is off\), got -1"):
        Reuse(prefix_bytes=-1)


def kept_bytes(vlm: VLM, sample: Sample, longest: int) -> int:
    """Return what a whole prompt takes."""
    reuse = Reuse()
    logits_of(vlm, sample, reuse, longest)
    return reuse.prefix.nbytes


def test_of_a_prompt_too_long_for_the_bound_the_beginning_is_kept() -> None:
    vlm, longest = shared("bfloat16"), 96
    sample = vlm.processor.encode(turns(with_images("What is this?", picture()), LONG, "And what else?"))
    bound = kept_bytes(vlm, sample, longest) * 3 // 4
    reuse = Reuse(prefix_bytes=bound)
    plain, _ = logits_of(vlm, sample, reuse, longest)
    again, num_reused = logits_of(vlm, sample, reuse, longest)
    assert torch.equal(again, plain)
    assert 3 / 4 * len(sample) - longest <= num_reused < len(sample)
    longer = vlm.processor.encode(
        turns(with_images("What is this?", picture()), LONG, "And what else?", LONG, "Are you sure?")
    )
    assert logits_of(vlm, longer, reuse, longest)[1] == num_reused
    assert logits_of(vlm, longer, reuse, longest)[1] == num_reused
    assert reuse.prefix.nbytes <= bound


def test_kept_prompts_of_a_cache_in_int8_take_fewer_bytes() -> None:
    sample = shared("bfloat16").processor.encode(turns(with_images(LONG + "Why?", picture())))
    plain, int8 = (kept_bytes(shared("bfloat16", form), sample, 96) for form in ("auto", "int8"))
    config = shared("bfloat16").model.config.language_config
    # One byte less for each channel of the latent and the rotary key, and four more for the scale of either. The last
    # states of the chunks are kept as they are.
    saved = config.kv_lora_rank + config.qk_rope_head_dim - 2 * 4
    assert plain - int8 == len(sample) * config.num_hidden_layers * saved


def test_another_prompt_makes_room_from_its_end() -> None:
    vlm, longest = shared("bfloat16"), 96
    old, new = (vlm.processor.encode(turns(with_images(LONG + "Why?", picture(seed)))) for seed in (0, 1))
    reuse = Reuse(prefix_bytes=kept_bytes(vlm, old, longest) * 3 // 2)
    logits_of(vlm, old, reuse, longest)
    logits_of(vlm, new, reuse, longest)
    assert logits_of(vlm, new, reuse, longest)[1] == len(new)
    assert len(old) / 2 - longest <= logits_of(vlm, old, reuse, longest)[1] < len(old)


def test_of_prompts_that_are_read_in_turns_one_is_kept_whole_where_only_one_fits() -> None:
    vlm, longest = shared("bfloat16"), 96
    samples = [vlm.processor.encode(turns(with_images(LONG + "Why?", picture(seed)))) for seed in (0, 1)]
    reuse = Reuse(prefix_bytes=kept_bytes(vlm, samples[0], longest))
    model, opening_id = vlm.model, vlm.processor.tokenizer.opening_id
    prompts = []
    for sample in samples:
        row = Cache.allocate(model.config.language_config, 1, len(sample), dtype=model.dtype, device=model.device)
        prompts.append(Prefill(vlm.runner, sample, row, opening_id=opening_id, max_chunk=longest, reuse=reuse))
    with torch.inference_mode():
        while [prompt.step() for prompt in prompts][-1] is None:
            pass
    assert logits_of(vlm, samples[1], reuse, longest)[1] == len(samples[1])


def test_a_long_prompt_can_be_stopped_between_its_chunks() -> None:
    vlm = fresh(**NOTHING)
    checks = iter([False, False, True, True])
    (reply,) = vlm.batch([turns(with_images("?", picture()))], max_new_tokens=4, is_cancelled=lambda: next(checks))
    assert (reply.finish_reason, reply.token_ids) == ("cancelled", ())


@pytest.mark.parametrize("chunks", [1, None], ids=["given up", "finished"])
def test_a_row_of_the_cache_goes_with_its_prompt(chunks: int | None) -> None:
    vlm = fresh()
    sample = vlm.processor.encode(turns(with_images("What is it?", picture())))
    model = vlm.model
    row = Cache.allocate(model.config.language_config, 1, len(sample), dtype=model.dtype, device=model.device)
    gone = weakref.ref(row)
    gc.disable()  # nothing may wait for the garbage collector: a row of the released sizes is 60 KB a token and more
    try:
        with torch.inference_mode():
            prompt = Prefill(vlm.runner, sample, row, opening_id=vlm.processor.tokenizer.opening_id, reuse=vlm.reuse)
            _ = prompt.finish() if chunks is None else prompt.step()
        del prompt, row
        assert gone() is None
    finally:
        gc.enable()


def bare_sample(ids: list[int], mask: list[bool]) -> Any:
    class Bare:
        input_ids, image_mask = torch.tensor(ids), torch.tensor(mask)
        answers = ()

        def __len__(self) -> int:
            return len(ids)

    return Bare()


@given(
    pieces=st.lists(st.tuples(st.sampled_from("tia"), st.integers(1, 60)), min_size=1, max_size=12),
    longest=st.none() | st.integers(1, 90),
    shorter=st.integers(1, 300),
    least=st.integers(1, 40),
)
@settings(derandomize=True, deadline=None)
def test_chunks_cover_the_prompt_and_depend_on_what_stands_before_them(
    pieces: list[tuple[str, int]], longest: int | None, shorter: int, least: int
) -> None:
    """Pieces are text, an image, or the opening of an answer and text."""
    ids: list[int] = []
    mask: list[bool] = []
    stops: list[int] = []
    for kind, count in pieces:
        mask += [kind == "i"] * count
        ids += [1] * count if kind == "i" else [7] + [2] * (count - 1) if kind == "a" else [2] * count
        stops += [sum(mask)] if kind == "i" else []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefix_cache, "MIN_CHUNK", least)
        ends = chunk_ends(bare_sample(ids, mask), stops, 7, longest)
        assert ends == sorted(set(ends))
        assert ends[-1] == len(ids)
        widths = [b - a for a, b in zip([0, *ends], ends, strict=False)]
        assert longest is None or max(widths) <= longest
        cut = min(shorter, len(ids))
        num_whole = sum(stop <= sum(mask[:cut]) for stop in stops)
        short_ends = chunk_ends(bare_sample(ids[:cut], mask[:cut]), stops[:num_whole], 7, longest)
        # All but the last, which the prompt's end makes, are those of the longer prompt as well.
        assert short_ends[:-1] == ends[: len(short_ends) - 1]


def test_the_store_drops_what_was_not_used_for_longest() -> None:
    store: ByteLRU[str] = ByteLRU(10)
    for name in ("a", "b", "c"):
        store.put(name.encode(), name, 3)
    assert store.get(b"a") == "a"
    store.put(b"d", "d", 4)
    assert [name for name in "abcd" if name.encode() in store] == ["a", "c", "d"]
    store.put(b"e", "e", 11)
    assert store.get(b"e") is None
    store.put(b"a", "A", 1)
    assert (store.get(b"a"), store.nbytes, len(store)) == ("A", 8, 3)


def test_room_is_made_before_a_value_is() -> None:
    store: ByteLRU[str] = ByteLRU(10)
    for name in ("a", "b", "c"):
        store.put(name.encode(), name, 3)
    assert not store.make_room(11), "it never fits"
    assert store.nbytes == 9
    assert store.make_room(4)
    assert [name for name in "abc" if name.encode() in store] == ["b", "c"]
    assert store.nbytes == 6


def test_a_cache_of_images_is_shared_between_threads() -> None:
    cache_, failures = EncoderCache(1000), []

    def work(seed: int) -> None:
        for i in range(300):
            number = (seed * 31 + i * 7) % 40
            known = cache_.get(bytes([number]))
            if known is not None and known.tolist() != [float(number)]:
                failures.append(number)
            cache_.put(bytes([number]), torch.tensor([float(number)]))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert cache_.nbytes == 4 * 40
