"""The step that never moves gives what the plain step gives; as a graph it needs a card."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.devices import needs_graphs
from tests.model.configs import small_model
from tests.reference import assert_near, messages_of, reference_vlm
from tests.runtime.recording import Again
from vl2.infer.prefill import prefill
from vl2.infer.vlm import VLM
from vl2.model import VL2, Cache, moe
from vl2.quant.quantize_model import SCHEMES, SchemeName, quantize_model
from vl2.runtime import PlainRunner, cuda, gpu_kernels
from vl2.runtime.cuda import CudaGraphRunner, FixedStep, GraphPool
from vl2.runtime.gpu_modules import GpuQuantizedExperts

LENGTHS = (7, 3, 11)


def filled_cache(model: VL2, capacity: int = 24) -> Cache:
    """Rows of unequal length, each read from a prompt of its own."""
    config = model.config.language_config
    cache = Cache.allocate(config, len(LENGTHS), capacity, dtype=model.dtype, device=model.device)
    generator = torch.Generator().manual_seed(0)
    for row, length in enumerate(LENGTHS):
        ids = torch.randint(0, config.vocab_size, (1, length), generator=generator).to(model.device)
        prefill(PlainRunner(model), model.language.embed(ids), cache.rows(row, row + 1))
    cache.lengths = list(LENGTHS)
    return cache


def decode_plainly(model: VL2, ids: list[int], cache: Cache) -> torch.Tensor:
    """Append one token to every row, as the model itself does."""
    states_B1D = model.language.extend(model.language.embed(torch.tensor(ids, device=model.device)[:, None]), cache)
    return model.language.logits(states_B1D[:, -1])


def pool_of(model: VL2) -> tuple[GraphPool, list[Cache]]:
    """Return a pool whose rows hold what those of `filled_cache` hold."""
    pool = GraphPool(CudaGraphRunner(model), filled_cache(model))
    rows = [pool.take(24) for _ in LENGTHS]
    for row, length in zip(rows, LENGTHS, strict=True):
        row.lengths = [length]
    return pool, rows


@pytest.mark.parametrize("num_positions", [13, 24], ids=["as many positions as are filled", "all"])
@pytest.mark.parametrize("size", ["tiny", "small", "base"])
@torch.inference_mode()
def test_a_step_that_never_moves_is_the_plain_step(size: str, num_positions: int) -> None:
    model = small_model(size)
    plain, fixed = filled_cache(model), filled_cache(model)
    step = FixedStep(model.language, fixed, num_positions)
    for ids in ([5, 6, 7], [1, 2, 3]):
        step.fill(ids, fixed.lengths, fixed.positions)
        step.run()
        ours = step.run()  # again: it writes the same to the same places
        fixed.advance(1)
        assert_near(ours, decode_plainly(model, ids, plain))
    for mine, theirs in zip(fixed.layers, plain.layers, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            assert_near(a, b)


class Waits(TorchDispatchMode):
    """Notes each operation for which host and card would have to wait for one another, or copy what the host made."""

    # tolist() shows itself by the second and third.
    KINDS = ("item", "_local_scalar_dense", "resolve_conj", "nonzero", "masked_select", "unique", "lift_fresh")

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in self.KINDS:
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


# In inference mode an operation that is made of others is seen as one; without gradients its parts are seen.
@pytest.mark.parametrize("seen_by", [torch.inference_mode, torch.no_grad])
@pytest.mark.parametrize(("size", "sizes"), [("tiny", {"moe_intermediate_size": 24}), ("small", {}), ("base", {})])
def test_nobody_waits_in_a_step(
    size: str, sizes: dict[str, int], seen_by: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_model(size, **sizes).to(torch.bfloat16)
    with seen_by():
        step = FixedStep(model.language, filled_cache(model), 24)
        step.fill([5, 6, 7], LENGTHS, LENGTHS)
        with Waits() as plain:
            step.run()
        assert plain.seen, "a CPU counts how many rows each expert has"
        # As on a card with a kernel for all experts.
        monkeypatch.setattr(moe, "uses_grouped_mm", lambda x_ND, weight_EFD: True)
        monkeypatch.setattr(moe, "block_rows", lambda x_TD, experts, equal_blocks: 1)
        with Waits() as waits:
            step.run()
        assert waits.seen == []


@torch.inference_mode()
def test_rows_are_decoded_in_any_selection_and_the_others_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "Recorder", Again)
    model = small_model("base")
    plain, (pool, rows) = filled_cache(model), pool_of(model)
    alone = [plain.rows(number, number + 1) for number in range(len(LENGTHS))]
    for number, row in enumerate(alone):
        row.lengths = [LENGTHS[number]]
    for chosen in ([2, 0], [1], [0, 1, 2], [2]):
        logits = pool.decode([5 + number for number in chosen], [rows[number] for number in chosen])
        for number, logits_V in zip(chosen, logits, strict=True):
            assert_near(logits_V, decode_plainly(model, [5 + number], alone[number])[0])
    pool.give_back(rows[0])
    taken = pool.take(24)
    assert taken.layers[0][0].data_ptr() == rows[0].layers[0][0].data_ptr()
    prefill(PlainRunner(model), model.language.embed(torch.tensor([[5, 6, 7]])), taken)
    fresh = Cache.allocate(model.config.language_config, 1, 24, dtype=model.dtype, device=model.device)
    prefill(PlainRunner(model), model.language.embed(torch.tensor([[5, 6, 7]])), fresh)
    assert_near(pool.decode([9], [taken])[0], decode_plainly(model, [9], fresh)[0])


@torch.inference_mode()
def test_where_no_graph_can_be_recorded_the_step_itself_is_run(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(device: torch.device) -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nmore about it")

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: None)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(torch.cuda, "device", refuse)
    model = small_model("tiny")
    plain, (pool, rows) = filled_cache(model), pool_of(model)
    for ids in ([5, 6, 7], [1, 2, 3]):
        assert_near(pool.decode(ids, rows), decode_plainly(model, ids, plain))
    assert [record.getMessage() for record in caplog.records] == [
        "vl2: steps are launched kernel by kernel, as no CUDA graph could be recorded: "
        "operation not permitted when stream is capturing"
    ]


def test_graphs_are_for_cards_alone() -> None:
    assert CudaGraphRunner.refusal(small_model("tiny").to(torch.bfloat16)) == "the model is on cpu"


@pytest.mark.parametrize(
    ("capability", "hip", "applies"),
    [
        ((8, 0), None, False),
        ((8, 9), None, False),
        ((9, 0), None, True),
        ((10, 3), None, True),
        ((11, 0), None, False),
        ((12, 0), None, False),
        ((9, 4), "6.4", False),
    ],
)
def test_graphs_are_for_cards_with_a_kernel_for_all_experts(
    capability: tuple[int, int], hip: str | None, applies: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, capability, hip)
    assert (CudaGraphRunner.refusal(small_model("base").to(torch.bfloat16)) is None) == applies


def pretend(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], hip: str | None = None) -> None:
    """Let every model seem to lie on a card of a compute capability."""
    monkeypatch.setattr(VL2, "device", torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(gpu_kernels, "refusal", lambda device: "no Triton in this test")


def test_graphs_are_for_what_the_kernel_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, (9, 0))
    assert "bfloat16" in (CudaGraphRunner.refusal(small_model("base")) or ""), "float32"
    # Its experts are 20 wide, 40 bytes of the 16 that the kernel takes at a time.
    assert "16 bytes" in (CudaGraphRunner.refusal(small_model("tiny").to(torch.bfloat16)) or "")


@pytest.mark.parametrize("weights", ["int4", "int8"])
def test_quantized_weights_need_the_kernels_of_triton(weights: SchemeName, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, (9, 0))
    model = small_model("base").to(torch.bfloat16)
    quantize_model(model, SCHEMES[weights])
    assert CudaGraphRunner.refusal(model) == "its weights are quantized; no Triton in this test"
    monkeypatch.setattr(gpu_kernels, "refusal", lambda device: None)
    assert CudaGraphRunner.refusal(model) is None
    modules = CudaGraphRunner(model).model.modules()
    assert any(isinstance(module, GpuQuantizedExperts) for module in modules)


def test_with_triton_graphs_are_for_cards_and_sides_that_pytorch_has_no_grouped_product_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pretend(monkeypatch, (8, 0))
    model = small_model("tiny").to(torch.bfloat16)
    assert (CudaGraphRunner.refusal(model) or "").endswith("no Triton in this test")
    monkeypatch.setattr(gpu_kernels, "refusal", lambda device: None)
    assert CudaGraphRunner.refusal(model) is None


def test_experts_of_another_kind_are_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, (9, 0))
    monkeypatch.setattr(gpu_kernels, "refusal", lambda device: None)
    model = small_model("base").to(torch.bfloat16)
    layer = next(module for module in model.modules() if isinstance(module, moe.MoE))
    layer.experts = torch.nn.Sequential(layer.experts)  # type: ignore[assignment]
    assert "its experts are Sequential" in (CudaGraphRunner.refusal(model) or "")


def test_who_follows_a_layer_is_not_passed_by(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, (9, 0))
    model = small_model("base").to(torch.bfloat16)
    handle = model.language.lm_head.register_forward_hook(lambda *_: None)
    assert "hook" in (CudaGraphRunner.refusal(model) or "")
    handle.remove()
    assert CudaGraphRunner.refusal(model) is None


@pytest.mark.gpu
@needs_graphs
@torch.inference_mode()
def test_a_graph_gives_what_the_plain_step_gives() -> None:
    model = small_model("base").to("cuda", torch.bfloat16)
    plain, (pool, rows) = filled_cache(model), pool_of(model)
    for ids in ([5, 6, 7], [1, 2, 3], [9, 8, 7]):
        ours = pool.decode(ids, rows)
        torch.testing.assert_close(ours, decode_plainly(model, ids, plain), atol=0.3, rtol=0.05)


@pytest.mark.gpu
@needs_graphs
def test_a_batch_that_shrinks_is_decoded_by_graphs() -> None:
    base = reference_vlm("base")
    vlm = VLM(copy.deepcopy(base.model).to("cuda", torch.bfloat16), base.processor, folder=base.folder)
    requests = [messages_of("base", case) for case in ("text", "single", "text")]
    replies = vlm.batch(requests, max_new_tokens=6)
    assert [len(reply.token_ids) for reply in replies] == [6, 6, 6]


def test_graphs_are_for_powers_of_two_and_the_whole_cache() -> None:
    assert [cuda.row_counts(rows) for rows in (1, 2, 3, 6, 16)] == [
        [1],
        [1, 2],
        [1, 2, 3],
        [1, 2, 4, 6],
        [1, 2, 4, 8, 16],
    ]
    assert cuda.position_counts(40) == [40]
    assert cuda.position_counts(512) == [512]
    assert cuda.position_counts(3000) == [512, 1024, 2048, 3000]
