"""Paging experts: the budget is kept, the least recently used leave first, and no answer changes."""

from __future__ import annotations

import mmap
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch

from tests.reference import CHECKPOINTS, IMAGES
from vl2.checkpoint.folder import Checkpoint
from vl2.checkpoint.in_place import FileViews
from vl2.checkpoint.load import read_model
from vl2.checkpoint.memory_plan import MemoryPlan
from vl2.checkpoint.pages import MappedFile
from vl2.checkpoint.paging import EXPERTS, ExpertPager
from vl2.checkpoint.policy import Policy
from vl2.checkpoint.write import quantize_checkpoint
from vl2.config import ModelConfig
from vl2.errors import UserError
from vl2.infer.vlm import VLM, load
from vl2.model import VL2
from vl2.process.processor import Processor

LAYER = "language.model.layers.1.mlp"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("paged") / "base4"
    quantize_checkpoint(CHECKPOINTS / "base", out)
    return out


Opened = tuple[VL2, FileViews]


def open_paged(folder: Path) -> Opened:
    policy = Policy(dtype=torch.float32, device=torch.device("cpu"), in_place="everything", expert_bytes=0)
    return read_model(Checkpoint.of(folder), policy)


def expert_bytes(opened: Opened) -> int:
    """Return the bytes of all routed experts."""
    return sum(stored.nbytes for name, stored in opened[1].stored.items() if EXPERTS in name)


def each(opened: Opened) -> int:
    """Return the bytes of one expert."""
    language = opened[0].config.language_config
    layers = sum(language.is_moe_layer(i) for i in range(language.num_hidden_layers))
    assert language.n_routed_experts is not None
    return expert_bytes(opened) // (layers * language.n_routed_experts)


class Watched(ExpertPager):
    """Remembers which experts were let go."""

    def __init__(self, opened: Opened, budget_bytes: int) -> None:
        super().__init__(*opened, budget_bytes)
        self.gone: list[int] = []

    def use(self, layer: str, experts: Iterable[int]) -> None:
        before = list(self._held)
        super().use(layer, experts)
        self.gone += [expert for layer_name, expert in before if (layer_name, expert) not in self._held]


def test_the_least_recently_used_expert_leaves_first(folder: Path) -> None:
    opened = open_paged(folder)
    pager = Watched(opened, 3 * each(opened))
    pager.use(LAYER, [0, 1, 2])
    assert (pager.gone, pager.misses, pager.hits) == ([], 3, 0)
    pager.use(LAYER, [0])
    pager.use(LAYER, [3])
    assert pager.gone == [1]
    pager.use(LAYER, [1])
    assert pager.gone == [1, 2]
    assert pager.held_bytes == 3 * each(opened)
    assert (pager.misses, pager.hits) == (5, 1)


def test_experts_of_one_pass_stay_even_above_the_budget(folder: Path) -> None:
    opened = open_paged(folder)
    pager = Watched(opened, each(opened))
    pager.use(LAYER, [0, 1, 2, 3])
    assert pager.gone == []
    pager.use(LAYER, [4])
    assert pager.gone == [0, 1, 2, 3]
    assert pager.held_bytes == each(opened)


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_answers_do_not_depend_on_the_budget(folder: Path, share: float) -> None:
    opened = open_paged(folder)
    pager = Watched(opened, round(share * expert_bytes(opened)))
    pager.attach()
    paged = VLM(opened[0], Processor.from_folder(folder), folder=folder)
    question = ("What is this?", [IMAGES / "photo640x480.png"])
    answer = paged.chat(*question, max_new_tokens=6)
    assert pager.gone  # it did page
    assert answer.token_ids == load(folder, device="cpu").chat(*question, max_new_tokens=6).token_ids


def test_a_bound_of_memory_pages_and_is_refused_where_it_is_too_small(folder: Path) -> None:
    config = ModelConfig.from_file(folder / "config.json")
    plan = MemoryPlan.of(config, "int4", config.language_config.max_position_embeddings)
    whole, bound = load(folder, device="cpu"), load(folder, device="cpu", memory=(plan.least + plan.total) // 2)
    hooks = [len(vlm.model.get_submodule(LAYER).gate._forward_hooks) for vlm in (whole, bound)]
    assert hooks == [0, 1]
    assert bound.chat("Hi", max_new_tokens=4).token_ids == whole.chat("Hi", max_new_tokens=4).token_ids
    with pytest.raises(UserError, match=r"needs at least .* GB with its experts paged, and .* GB are allowed"):
        load(folder, device="cpu", memory=plan.least - 1)


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux")
def test_what_is_evicted_leaves_this_process_and_comes_back_from_the_file(tmp_path: Path) -> None:
    pages = 64
    path = tmp_path / "bytes"
    path.write_bytes(bytes(range(256)) * (mmap.PAGESIZE * pages // 256))
    file = MappedFile(path)
    values = torch.frombuffer(file._map, dtype=torch.uint8)

    def resident() -> int:
        lines = Path("/proc/self/smaps").read_text().splitlines()
        start = next(i for i, line in enumerate(lines) if line.endswith(str(path)))
        return next(int(line.split()[1]) for line in lines[start:] if line.startswith("Rss:")) * 1024

    file.read(0, file.nbytes)
    total = int(values.sum(dtype=torch.int64))
    assert resident() == file.nbytes
    file.evict(100, 32 * mmap.PAGESIZE)  # 31 whole pages
    assert resident() == file.nbytes - 31 * mmap.PAGESIZE
    assert int(values.sum(dtype=torch.int64)) == total
