"""Arithmetic and memory by formula, against what PyTorch counts and holds."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.train.toy import toy_config, toy_stage
from vl2.checkpoint.model_size import ModelSize
from vl2.config import ModelConfig, preset
from vl2.data.pack import Packed
from vl2.errors import UserError
from vl2.lora.attach import add_lora
from vl2.lora.spec import LoRASpec
from vl2.model import VL2, init_weights
from vl2.train.dry_run import activation_bytes, expected_memory, part_sizes, plan_run
from vl2.train.flops import ForwardCost, measure_rate, step_flops
from vl2.train.parts import freeze, still_parts
from vl2.train.ranks import ONE
from vl2.train.recipe import ModelOptions, Recipe, RunOptions, paper_stage, recipe_from
from vl2.train.stage import Part
from vl2.train.step import TrainStep

COST = ForwardCost(
    per_token=1.0, per_token_in_end=0.0, per_logit=0.0, per_pair=0.0, per_tile_vision=1e6, per_tile_projector=1e3
)


def counted(run: object) -> int:
    with FlopCounterMode(display=False) as counter:
        run()  # type: ignore[operator]
    return counter.get_total_flops()


@pytest.mark.parametrize("name", ["nano", "tiny"])
def test_a_tile_costs_what_pytorch_counts(name: str) -> None:
    config = preset(name)
    with torch.device("meta"):
        model = VL2(config)
        tile = torch.zeros(2, 3, config.vision_config.image_size, config.vision_config.image_size)
    cost = ForwardCost.of(config)
    found = counted(lambda: model.encode_tiles(tile))
    assert 2 * (cost.per_tile_vision + cost.per_tile_projector) == pytest.approx(found, rel=0.02)


@pytest.mark.parametrize("name", ["nano", "tiny", "small", "base"])
def test_a_token_costs_two_operations_for_each_active_weight(name: str) -> None:
    config = preset(name)
    active = ModelSize.of(config).language_active
    cost = ForwardCost.of(config)
    head = config.language_config.vocab_size * config.language_config.hidden_size
    assert cost.per_token + cost.per_logit == pytest.approx(2 * active, rel=0.01)
    assert cost.per_logit == 2 * head


@pytest.mark.parametrize(
    ("frozen", "passes"),
    [
        ((), (3, 3, 3)),
        (("language",), (2, 3, 3)),
        (("vision",), (3, 3, 1)),
        (("vision", "projector"), (3, 1, 1)),
        (("language", "projector"), (2, 2, 3)),
    ],
)
def test_what_is_frozen_costs_no_gradients_of_weights(frozen: tuple[Part, ...], passes: tuple[int, int, int]) -> None:
    found = step_flops(COST, frozen, lengths=[1], num_trained=0, num_tiles=1)
    language, projector, vision = passes
    expected = language + projector * 1e3 + vision * 1e6
    assert found == expected


@pytest.mark.parametrize(
    ("still", "passes"), [(("vision", "projector"), (2, 1, 1)), ((), (2, 2, 2)), (("vision",), (2, 2, 1))]
)
def test_an_adapter_needs_gradients_of_activations_but_of_no_weights(
    still: tuple[Part, ...], passes: tuple[int, int, int]
) -> None:
    found = step_flops(COST, still, lengths=[1], num_trained=0, num_tiles=1, trains_weights=False)
    assert found == passes[0] + passes[1] * 1e3 + passes[2] * 1e6


def test_a_part_without_anything_trained_stands_still() -> None:
    model = VL2(ModelConfig.from_dict(toy_config()))
    assert still_parts(model) == ()
    add_lora(model, LoRASpec(targets=("attention",)))
    assert still_parts(model) == ("vision", "projector")


def test_the_rate_of_this_machine_is_positive() -> None:
    assert measure_rate(torch.device("cpu"), torch.float32, size=64) > 0


@pytest.mark.parametrize(
    ("compute", "is_bfloat16_optimizer"), [("float32", False), ("bfloat16", False), ("bfloat16", True)]
)
def test_the_memory_of_a_state_is_what_the_trainer_holds(compute: str, is_bfloat16_optimizer: bool) -> None:
    stage = toy_stage(is_bfloat16_optimizer=is_bfloat16_optimizer)
    tables = {"model": {"name": "x"}, "stage": {"like": "tiny/pretraining"}, "run": {"folder": "x"}}
    recipe = recipe_from({**tables, "engine": {"compute": compute}})
    recipe = Recipe(model=recipe.model, stage=stage, run=recipe.run, engine=recipe.engine)
    model = VL2(ModelConfig.from_dict(toy_config()))
    init_weights(model, 0)
    model = model.to(torch.float32 if compute == "float32" else torch.bfloat16)
    step = TrainStep(model, stage, ONE)
    memory = expected_memory(model, recipe, most_tiles=4)
    weights = {p.data_ptr(): p.numel() * p.element_size() for p in model.parameters()}
    held = {t.data_ptr(): t.numel() * t.element_size() for t in tensors_of(step.state_dict())}
    assert memory.weights == sum(weights.values())
    assert memory.optimizer == sum(size for place, size in held.items() if place not in weights)
    assert memory.gradients == sum(gradient.nbytes for _, gradient in step.optimizer.gradients())


def tensors_of(state: object) -> list[torch.Tensor]:
    if isinstance(state, torch.Tensor):
        return [state]
    return [t for one in state.values() for t in tensors_of(one)] if isinstance(state, dict) else []


@pytest.mark.parametrize("name", ["tiny", "small", "base"])
def test_every_size_is_planned_without_its_weights(name: str) -> None:
    recipe = Recipe(
        model=ModelOptions(name="not/here", preset=name),
        stage=paper_stage(f"{name}/pretraining"),
        run=RunOptions(folder="out"),
    )
    planned = plan_run(recipe, rate=4e14)
    size = ModelSize.of(preset(name))
    moe = preset(name).language_config
    biases = (moe.num_hidden_layers - moe.first_k_dense_replace) * moe.n_routed_experts * (name == "base")
    # The expert bias is moved by its own rule, not trained.
    assert sum(part.trained for part in planned.parts.values()) == size.parameters - size.attention_pool - biases
    assert planned.num_steps == {"tiny": 84_612, "small": 85_714, "base": 57_874}[name]
    assert planned.tokens_per_step == recipe.stage.batch_size * 4096
    assert not planned.is_measured
    assert planned.to_dict()["memory"]["total"] > 4 * size.parameters


def test_an_adapter_is_planned_by_what_it_trains() -> None:
    tables = {"model": {"name": "nano"}, "stage": {"like": "tiny/fine-tuning"}, "run": {"folder": "x"}}
    whole = plan_run(recipe_from(tables), rate=1e12)
    lora, qlora = (plan_run(recipe_from({**tables, "adapter": {"method": m}}), rate=1e12) for m in ("lora", "qlora"))
    assert 0 < lora.parts["language"].trained < whole.parts["language"].trained
    assert 0 < lora.parts["vision"].trained < whole.parts["vision"].trained
    language = {"adapter": {"method": "lora", "targets": ["attention", "mlp", "experts"]}}
    assert plan_run(recipe_from({**tables, **language}), rate=1e12).parts["vision"].trained == 0
    assert lora.memory.optimizer < whole.memory.optimizer
    assert qlora.memory.weights < lora.memory.weights
    assert lora.flops_per_step < whole.flops_per_step


def test_what_is_computed_again_is_not_kept() -> None:
    config = preset("tiny")

    def kept(**options: Any) -> int:
        return activation_bytes(config, (), num_tokens=4096, num_tiles=8, value_bytes=2, **options)

    layers = kept(recomputes_layers=True)
    assert kept() > layers > kept(recomputes_layers=True, encoder="blocks")
    assert layers > kept(recomputes_layers=True, encoder="whole")


def test_a_model_that_is_not_here_needs_a_size() -> None:
    recipe = Recipe(
        model=ModelOptions(name="not/here"), stage=paper_stage("tiny/alignment"), run=RunOptions(folder="out")
    )
    with pytest.raises(
        UserError, match=r"the model not/here is not here: give the size to plan for with --model\.preset"
    ):
        plan_run(recipe, rate=1e12)


def test_frozen_parts_are_counted_apart() -> None:
    with torch.device("meta"):
        model = VL2(preset("nano"))
    freeze(model, toy_stage(frozen=("language",), expert_bias_step=0.0))
    sizes = part_sizes(model)
    assert set(sizes) == set(get_args(Part))
    assert (sizes["language"].trained, sizes["projector"].frozen) == (0, 0)


@pytest.mark.parametrize("name", ["nano", "tiny"])
def test_kept_activations_are_estimated_within_a_third(name: str) -> None:
    values = preset(name).to_dict()
    # Two blocks of each kind tell as much as all, and 16 experts as 64, in a small part of the time: a token goes to as
    # many of them.
    num_experts = min(16, values["language_config"]["n_routed_experts"])
    values["language_config"] |= {"num_hidden_layers": 3, "vocab_size": 128, "n_routed_experts": num_experts}
    values["vision_config"] |= {"layers": 2}
    config = ModelConfig.from_dict(values)
    side = config.vision_config.image_size
    model = VL2(config)
    init_weights(model, 0)
    weight_places = {p.untyped_storage().data_ptr() for p in model.parameters()}
    tokens, tiles = 256, 1
    q = config.tokens_per_side
    slots = q * (q + 1) + 1 + q * (q + 1)
    ids = torch.ones(max(tokens, slots + 8), dtype=torch.int64)
    mask = torch.zeros(len(ids), dtype=torch.bool)
    mask[1 : 1 + slots] = True
    pack = Packed(
        input_ids=ids,
        labels=ids,
        position_ids=torch.arange(len(ids)),
        cu_seqlens=torch.tensor([0, len(ids)], dtype=torch.int32),
        image_mask=mask,
        tiles=torch.zeros(tiles, 3, side, side),
        grids=torch.ones(1, 2, dtype=torch.int64),
        layout=config.layout(q, q),
        num_tokens=len(ids),
        max_seqlen=len(ids),
        names=("x",),
        categories=("ocr",),
    )
    found: dict[int, int] = {}

    def pack_hook(tensor: torch.Tensor) -> torch.Tensor:
        place = tensor.untyped_storage().data_ptr()
        if tensor.is_floating_point() and place not in weight_places:
            found[place] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack_hook, lambda tensor: tensor):
        hidden = model.states(pack)
    expected = activation_bytes(config, still_parts(model), num_tokens=len(ids), num_tiles=tiles, value_bytes=4)
    assert hidden.states_BSD.requires_grad
    assert expected == pytest.approx(sum(found.values()), rel=0.34)
