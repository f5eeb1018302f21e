"""Weights that stay in their files: the same numbers as copied ones, wherever they are looked at, moved or saved."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.model.configs import small_model
from vl2.checkpoint import LoadOptions, in_place, load_model, pages, save_model
from vl2.checkpoint.folder import SINGLE
from vl2.checkpoint.pages import HUGE_PAGE, MAPPINGS, MappedFile, lies_in_huge_pages, mapped_huge
from vl2.checkpoint.safetensors_file import SafetensorsWriter, read_header
from vl2.infer.prefill import prefill
from vl2.model import VL2, Cache
from vl2.model.memory_mapped_experts import MemoryMappedExperts
from vl2.model.moe import Experts, MoE
from vl2.runtime import choose_runner

WIDTHS = {"intermediate_size": 96, "moe_intermediate_size": 32}  # whole lines, as tile registers want them
HEAD = "language.lm_head.weight"


@pytest.fixture(autouse=True)
def pages_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_place, "lies_in_huge_pages", lambda *part: True)
    monkeypatch.setattr(in_place, "LEAST_BYTES", 0)


def write_aligned(tensors: dict[str, Tensor], path: Path) -> None:
    with SafetensorsWriter(path, tensors, aligned=True) as file:
        for name, tensor in tensors.items():
            file.write(name, tensor)


@pytest.fixture(params=[torch.bfloat16, torch.float32], ids=["bfloat16", "float32"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    save_model(small_model("tiny", **WIDTHS).to(request.param), folder)
    write_aligned(load_file(folder / SINGLE), tmp_path / "aligned")
    (tmp_path / "aligned").replace(folder / SINGLE)
    return folder


def opened(folder: Path, *, only_answers: bool = True) -> VL2:
    return load_model(folder, LoadOptions(only_answers=only_answers))


def experts_of(model: VL2) -> list[nn.Module]:
    return [module.experts for module in model.modules() if isinstance(module, MoE)]


@torch.inference_mode()
def states(model: VL2) -> Iterator[Tensor]:
    """A prompt, its next tokens, and a prompt that is read layer by layer because somebody follows."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, model.config.language_config.vocab_size, (1, 90), generator=generator)
    cache = Cache.allocate(model.config.language_config, 1, 100, dtype=model.dtype, device=model.device)
    runner = choose_runner(model)
    yield prefill(runner, model.language.embed(ids), cache)
    for token in range(3):
        yield runner.decode([token], [cache], 1)
    hook = model.language.model.norm.register_forward_hook(lambda *_: None)
    cache = Cache.allocate(model.config.language_config, 1, 100, dtype=model.dtype, device=model.device)
    yield prefill(choose_runner(model), model.language.embed(ids), cache)
    hook.remove()


def assert_same(ours: VL2, theirs: VL2) -> None:
    pairs = list(zip(states(ours), states(theirs), strict=True))
    assert len(pairs) == 5
    assert all(torch.equal(a, b) for a, b in pairs)


def test_the_answers_have_the_bits_that_those_of_copied_weights_have(folder: Path) -> None:
    model, copied = opened(folder), opened(folder, only_answers=False)
    assert {type(e) for e in experts_of(model)} == {MemoryMappedExperts}
    assert {type(e) for e in experts_of(copied)} == {Experts}
    assert_same(model, copied)
    notes = [choose_runner(opened).notes for opened in (model, copied)]
    assert notes[0] == notes[1], "the kernels take weights in their files"


@pytest.mark.skipif(not MAPPINGS.exists(), reason="looks at what is mapped as Linux shows it")
def test_experts_head_and_table_lie_in_the_file_and_nothing_else_does(folder: Path) -> None:
    model = opened(folder)
    mapped = [line.split()[0].split("-") for line in MAPPINGS.read_text().splitlines() if str(folder) in line]
    ranges = [(int(first, 16), int(end, 16)) for first, end in mapped]
    inside = {
        name
        for name, tensor in model.state_dict().items()
        if any(first <= tensor.data_ptr() < end for first, end in ranges)
    }
    named = {HEAD, "language.model.embed_tokens.weight"}
    assert inside == named | {name for name in model.state_dict() if ".experts." in name}
    assert len(inside) > 50


@pytest.mark.parametrize("apart", ["one", "all"])
def test_projections_that_do_not_follow_each_other_are_copied_and_reported(apart: str, folder: Path) -> None:
    file = folder / SINGLE
    tensors, expected = load_file(file), opened(folder, only_answers=False)
    moved = [
        n for n in tensors if n.endswith("up_proj.weight") and (".experts.2." if apart == "one" else ".expert") in n
    ]
    write_aligned({name: tensors.pop(name) for name in moved}, folder / "model-00001-of-00002.safetensors")
    write_aligned(tensors, folder / "model-00002-of-00002.safetensors")
    file.unlink()
    seen: list[tuple[int, int]] = []
    model = load_model(folder, LoadOptions(only_answers=True), progress=lambda *counts: seen.append(counts))
    assert {type(e) for e in experts_of(model)} == {MemoryMappedExperts}
    assert_same(model, expected)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert seen[-1][0] == seen[-1][1] == sum(t.nbytes for t in expected.state_dict().values())


def test_float32_matrices_that_begin_within_a_line_are_copied(folder: Path) -> None:
    """Products of one row by MKL depend on it. The header of such a file may have any length that 8 divides."""
    tensors, expected = load_file(folder / SINGLE), opened(folder, only_answers=False)
    (folder / SINGLE).unlink()
    for length in range(64):
        save_file(tensors, folder / SINGLE, metadata={"filled": "-" * length})
        if any(stored.offset % 64 for name, stored in read_header(folder / SINGLE).items() if ".experts." in name):
            break
    model = opened(folder)
    assert {type(e) for e in experts_of(model)} == {Experts if model.dtype == torch.float32 else MemoryMappedExperts}
    assert_same(model, expected)


def test_weights_that_are_wanted_otherwise_or_lie_in_small_pages_are_copied(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cast = load_model(folder, LoadOptions(only_answers=True, dtype=torch.float16))
    monkeypatch.setattr(in_place, "lies_in_huge_pages", lambda *part: False)
    for model in (cast, load_model(folder, LoadOptions(only_answers=True))):
        assert {type(e) for e in experts_of(model)} == {Experts}


def test_a_model_is_saved_cast_and_copied_as_any_other(folder: Path, tmp_path: Path) -> None:
    model, plain = opened(folder), opened(folder, only_answers=False)
    save_model(model, tmp_path / "saved")
    before, after = load_file(folder / SINGLE), load_file(tmp_path / "saved" / SINGLE)
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())

    again = copy.deepcopy(model)
    places = [weight.data_ptr() for experts in experts_of(model) for pair in experts.pairs() for weight in pair]
    assert not set(places) & {w.data_ptr() for experts in experts_of(again) for pair in experts.pairs() for w in pair}
    assert_same(again, plain)

    other = torch.float32 if model.dtype == torch.bfloat16 else torch.bfloat16
    assert_same(model.to(other), plain.to(other))
    assert {weight.dtype for experts in experts_of(model) for pair in experts.pairs() for weight in pair} == {other}


def test_experts_in_their_file_learn_as_others_do_and_the_file_stays_as_it_is(folder: Path) -> None:
    before = (folder / SINGLE).read_bytes()
    ours, theirs = (experts_of(opened(folder, only_answers=only))[0] for only in (True, False))
    assert isinstance(ours, MemoryMappedExperts)
    assert isinstance(theirs, Experts)
    E, D = theirs.down_proj.shape[:2]
    counts_E = torch.arange(E) % 3
    x_ND = torch.randn(int(counts_E.sum()), D, generator=torch.Generator().manual_seed(0)).to(theirs.down_proj.dtype)
    for experts in (ours, theirs):
        experts(x_ND, counts_E).float().square().sum().backward()
    gate_ups, downs = zip(*ours.pairs(), strict=True)
    for matrices, stack in ((gate_ups, theirs.gate_up_proj), (downs, theirs.down_proj)):
        gradients = torch.stack([torch.zeros_like(m) if m.grad is None else m.grad for m in matrices])
        torch.testing.assert_close(gradients, stack.grad)
        assert gradients.any()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.mul_(2)
    assert torch.equal(torch.stack(downs), 2 * theirs.down_proj)
    assert (folder / SINGLE).read_bytes() == before


def test_where_the_system_does_not_say_what_it_maps_no_page_is_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(bytes(8 * HUGE_PAGE))
    monkeypatch.setattr(pages, "MAPPINGS", tmp_path / "nothing")
    assert not lies_in_huge_pages(tmp_path / "file", 0, 8 * HUGE_PAGE)


@pytest.mark.skipif(not MAPPINGS.exists(), reason="asks Linux what it maps")
def test_what_is_touched_and_held_is_in_memory_and_not_copied(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(4 * HUGE_PAGE))
    file = MappedFile(tmp_path / "file")
    file.touch(HUGE_PAGE + 100, HUGE_PAGE)
    file.mlock(HUGE_PAGE + 100, HUGE_PAGE)
    sizes = {"Rss": 0, "Anonymous": 0}
    is_of_file = False
    for line in MAPPINGS.read_text().splitlines():
        word = line.split()[0]
        if not word.endswith(":"):
            is_of_file = line.endswith(str(tmp_path / "file"))
        elif is_of_file and word[:-1] in sizes:
            sizes[word[:-1]] += int(line.split()[1]) << 10
    assert sizes["Rss"] >= HUGE_PAGE
    assert sizes["Anonymous"] == 0


@pytest.mark.skipif(not MAPPINGS.exists(), reason="asks Linux what it maps")
@pytest.mark.parametrize("chunk", [10 << 20, 60_000])
def test_whether_a_file_lies_in_huge_pages_is_told_by_some_of_them(chunk: int, tmp_path: Path) -> None:
    path, content = tmp_path / "file", bytes(64 << 20)
    with path.open("wb", buffering=0) as file:
        for start in range(0, len(content), chunk):
            file.write(content[start : start + chunk])
    whole = MappedFile(path)
    whole.prefer_huge_pages(True)
    whole.read(0, whole.nbytes)
    share = mapped_huge(whole) / whole.nbytes
    if share in (0, 1):  # between the two, what is sampled decides
        assert lies_in_huge_pages(path, 0, len(content)) == (share == 1)
        assert lies_in_huge_pages(path, 5 * HUGE_PAGE - 1, 3 * HUGE_PAGE) == (share == 1)
    assert not lies_in_huge_pages(path, 5 * HUGE_PAGE + 1, 3 * HUGE_PAGE - 2), "one whole page tells nothing"
