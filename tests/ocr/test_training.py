"""The DeepSeek-OCR family is trained as DeepSeek-VL2 is: gradients, frozen parts, adapters, packs, steps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.ocr.cases import CASES, picture
from tests.ocr.golden import SMALLEST_MODE, apart, both_encoders, toy_folder, toy_vlm
from vl2.checkpoint.toy_checkpoint import drawn_model, toy_config
from vl2.config import ModelConfig
from vl2.data.pack import Packed, pack_samples
from vl2.errors import UserError
from vl2.infer.vlm import load
from vl2.lora.attach import add_lora, lora_layers
from vl2.lora.peft_files import load_adapter, save_adapter
from vl2.lora.spec import LoRASpec
from vl2.model import VL2
from vl2.model.init import init_weights
from vl2.process.sample import collate
from vl2.train.dry_run import activation_bytes
from vl2.train.flops import ForwardCost
from vl2.train.loss import next_token_loss
from vl2.train.parts import freeze, parameter_groups, still_parts
from vl2.train.ranks import ONE
from vl2.train.recompute import checkpoint_activations
from vl2.train.shard import shard
from vl2.train.stage import Stage
from vl2.train.step import TrainStep

PAGE = Image.effect_noise((641, 1280), 60).convert("RGB")  # two crops and an overview in mode "gundam"


def stage(**fields: object) -> Stage:
    made = {
        "name": "toy", "learning_rate": 3e-3, "schedule": "constant", "warmup_steps": 1, "balance_loss_weight": 0.0,
        "num_steps": 20, "batch_size": 1, "seq_len": 2048, "is_packed": True, "mask_prompt": True,
    }  # fmt: skip
    return Stage(**{**made, **fields})  # type: ignore[arg-type]


def pack(name: str = "deepseek-ocr", mode: str | None = None, *, padded_to: int | None = None) -> Packed:
    """Return a page with crops where the mode has any, a small picture, and a text, with answers."""
    processor = toy_vlm(mode or SMALLEST_MODE[name], name).processor

    def turns(images: list[Image.Image], answer: str) -> list[dict[str, object]]:
        parts = [*({"type": "image", "image": image} for image in images), {"type": "text", "text": "Free OCR."}]
        return [{"role": "user", "content": parts}, {"role": "assistant", "content": answer}]

    asked = [turns([PAGE], "one two"), turns([picture(CASES[0])], "three"), turns([], "four five six")]
    return pack_samples([processor.encode(messages, train=True) for messages in asked], processor, padded_to)


def loss_of(model: VL2, packed: Packed) -> torch.Tensor:
    states = model.states(packed).states_BSD[0]
    total, _ = next_token_loss(states, packed.labels, model.language.lm_head.weight)
    return total


@both_encoders
def test_documents_of_a_pack_are_as_alone(name: str) -> None:
    model = drawn_model(toy_config(name)).train()
    packed = pack(name, "gundam", padded_to=2048)
    processor = toy_vlm("gundam", name).processor
    with torch.no_grad():
        together = model.states(packed).states_BSD[0]
        borders = packed.cu_seqlens.tolist()
        sample = processor.encode_prompt("<image>\nFree OCR.", [PAGE])
        alone = model(collate([sample])).logits[0, : len(sample) - 1]
        logits = model.language.logits(together[: borders[1]])[: len(sample) - 1]
    assert packed.num_views == 2 + 1 + 1
    assert apart(logits, alone) < 1e-4


@both_encoders
def test_gradients_are_finite_differences_in_every_part_of_the_encoder(name: str) -> None:
    """Along the gradient of each part, a sum over the visual tokens must change as predicted.

    In float64, but with queries in float32: its norms and rotations compute in float32 whatever the type. The language
    model is DeepSeek-VL2's, with tests of its own.
    """
    dtype = torch.float64 if name == "deepseek-ocr" else torch.float32
    model, packed = drawn_model(toy_config(name)).to(dtype).train(), pack(name)
    weights = torch.randn(1, len(packed), 64, dtype=dtype, generator=torch.Generator().manual_seed(0))

    def summed() -> torch.Tensor:
        return (model.embed_packed(packed) * weights).sum(dtype=torch.float64)

    packed = replace(packed, overviews=packed.overviews.to(dtype), tiles=packed.tiles.to(dtype))  # type: ignore[union-attr]
    freeze(model, stage())
    parts: dict[str, list[torch.nn.Parameter]] = {}
    for named, parameter in model.named_parameters():
        if parameter.requires_grad and not named.startswith("language."):
            parts.setdefault(_part(named), []).append(parameter)
    second = {"clip"} if name == "deepseek-ocr" else {"query_encoder", "queries"}
    assert set(parts) == {"patches", "positions", "relative", "sam", "convolutions", "projector", "learned", *second}
    summed().backward()
    for part, parameters in parts.items():
        gradients = [(p, p.grad.clone()) for p in parameters if p.grad is not None]
        norm = torch.stack([gradient.norm() for _, gradient in gradients]).norm()
        assert norm > 0, part
        # A step in float32 has to be larger, and tables of positions are interpolated in float32.
        step, near = (1e-4, 1e-3) if dtype == torch.float64 else (1e-3, 1e-2)
        if part in ("positions", "relative"):
            step, near = 1e-2, 1e-2
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                for p, gradient in gradients:
                    p += sign * step * gradient / norm
                values.append(float(summed()))
                for p, gradient in gradients:
                    p -= sign * step * gradient / norm
        assert (values[0] - values[1]) / (2 * step) == pytest.approx(float(norm), rel=near), part


def _part(name: str) -> str:
    known = {
        "vision.sam.patch_embed": "patches", "vision.sam.pos_embed": "positions", "vision.sam.net_": "convolutions",
        "vision.sam.": "sam", "vision.clip.": "clip", "vision.query_encoder.query_": "queries",
        "vision.query_encoder.": "query_encoder", "projector.": "projector", "language.": "language",
    }  # fmt: skip
    if ".rel_pos_" in name:
        return "relative"
    return next((part for start, part in known.items() if name.startswith(start)), "learned")


@both_encoders
@pytest.mark.parametrize("encoder", ["blocks", "whole"])
def test_recomputed_activations_have_the_same_gradients(encoder: str, name: str) -> None:
    packed, gradients = pack(name), []
    for recomputes in (False, True):
        model = drawn_model(toy_config(name)).train()
        if recomputes:
            checkpoint_activations(model, encoder=encoder)  # type: ignore[arg-type]
        loss_of(model, packed).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert "vision.sam.blocks.0.attn.rel_pos_h" in gradients[0]
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("frozen", "moving"),
    [
        (("vision",), {"projector", "image_newline", "view_separator", "language"}),
        (("sam", "language"), {"vision.sam.net_2", "vision.sam.net_3", "vision.clip", "projector", "image_newline",
                               "view_separator"}),
        (("convolutions", "clip", "projector"), {"vision.sam", "language"}),
    ],
)  # fmt: skip
def test_parts_are_frozen(frozen: tuple[str, ...], moving: set[str]) -> None:
    model = drawn_model(toy_config()).train()
    freeze(model, stage(frozen=frozen))
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    assert all(any(name.startswith(start) for start in moving) for name in names)
    assert all(any(name.startswith(start) for name in names) for start in moving)
    if "sam" not in frozen and "convolutions" in frozen:
        assert not any(".net_" in name for name in names)


def test_the_parts_of_deepseek_ocr_2_are_frozen() -> None:
    model = drawn_model(toy_config("deepseek-ocr-2")).train()
    with pytest.raises(UserError, match="this model has no clip to freeze"):
        freeze(model, stage(frozen=("clip",)))
    freeze(model, stage(frozen=("query_encoder", "language")))
    moving = {_part(name) for name, p in model.named_parameters() if p.requires_grad}
    assert moving == {"patches", "positions", "relative", "sam", "convolutions", "projector", "learned"}
    model = drawn_model(toy_config("deepseek-ocr-2")).train()
    plain = {name for group in parameter_groups(model, stage()) if not group.weight_decay for name in group.names}
    assert {"vision.query_encoder.query_768.weight", "vision.query_encoder.layers.0.self_attn.q_proj.bias"} <= plain


def test_parts_that_are_not_there_are_refused_and_tables_of_offsets_do_not_decay() -> None:
    with pytest.raises(UserError, match="this model has no sam to freeze"):
        freeze(load("nano", device="cpu").model, stage(frozen=("sam",)))
    with pytest.raises(UserError, match="all parts are frozen"):
        stage(frozen=("sam", "convolutions", "clip", "projector", "language"))
    with pytest.raises(UserError, match="a part of the model must be one of"):
        stage(frozen=("encoder",))
    model = drawn_model(toy_config()).train()
    freeze(model, stage())
    groups = parameter_groups(model, stage(optimizer="muon"))
    plain = {name for group in groups if not group.weight_decay for name in group.names}
    assert {"vision.sam.pos_embed", "vision.sam.blocks.0.attn.rel_pos_w",
            "vision.clip.embeddings.position_embedding.weight"} <= plain  # fmt: skip
    orthogonal = {name for group in groups if group.is_orthogonal for name in group.names}
    assert "vision.clip.transformer.layers.0.mlp.fc1.weight" in orthogonal
    assert not any("rel_pos" in name for name in orthogonal)
    assert not any("patch_embedding" in name for group in groups for name in group.names)
    assert still_parts(model) == ()


every_kind = pytest.mark.parametrize("name", list(SMALLEST_MODE))


@every_kind
def test_a_few_steps_learn_an_answer(name: str) -> None:
    """The whole toy, on one pack: the loss falls to a small part, and every part has moved."""
    model = drawn_model(toy_config(name)).train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    shard(model, "replicated", replace(ONE, device=torch.device("cpu")), torch.float32)
    step = TrainStep(model, stage(), replace(ONE, device=torch.device("cpu")))
    losses = []
    packed = pack(name)
    for _ in range(12):
        report = step.accumulate([packed])
        losses.append(report.loss)
        step.apply(report, 3e-3)
    assert report.num_tiles == 2
    assert losses[-1] < 0.2 * losses[0]
    moved = {_part(name) for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {_part(name) for name in before}


SECOND_HALVES = {
    "deepseek-ocr": {"vision.clip.transformer.layers.1.self_attn.qkv_proj"},
    "deepseek-ocr-2": {"vision.query_encoder.layers.1.self_attn.o_proj", "vision.query_encoder.layers.0.mlp.down_proj"},
}
SECOND_HALVES["unlimited-ocr"] = SECOND_HALVES["deepseek-ocr"]


@every_kind
def test_an_adapter_is_trained_saved_and_merged(name: str, tmp_path: Path) -> None:
    folder, mode = toy_folder(name), SMALLEST_MODE[name]
    vlm = load(folder, device="cpu", tiling=mode)
    model = vlm.model.train()
    names = add_lora(model, LoRASpec(rank=4, targets=("attention", "experts", "projector", "vision")))
    assert {"vision.sam.blocks.2.mlp.lin2", "projector.layers", *SECOND_HALVES[name]} <= set(names)
    step = TrainStep(model, stage(), replace(ONE, device=torch.device("cpu")))
    losses, packed = [], pack(name)
    for _ in range(6):
        report = step.accumulate([packed])
        losses.append(report.loss)
        step.apply(report, 1e-2)
    assert losses[-1] < 0.8 * losses[0]
    assert all(float(p.detach().abs().max()) > 0 for _, layer in lora_layers(model) for n, p in layer.named_parameters()
               if n.endswith("lora_B"))  # fmt: skip
    save_adapter(model, tmp_path / "adapter")
    fresh = load(folder, device="cpu", tiling=mode).model
    load_adapter(fresh, tmp_path / "adapter")
    merged = load(folder, device="cpu", tiling=mode, adapter=tmp_path / "adapter").model
    with torch.no_grad():
        expected = float(loss_of(model.eval(), packed))
        assert float(loss_of(fresh, packed)) == pytest.approx(expected, rel=1e-4)
        assert float(loss_of(merged, packed)) == pytest.approx(expected, rel=1e-3)


@both_encoders
def test_kept_activations_are_estimated_within_a_third(name: str) -> None:
    """SAM of two blocks, one of each kind, over the overview of mode "gundam"."""
    values = toy_config(name).to_dict()
    sam = {"width": 96, "layers": 2, "heads": 2, "global_attn_indexes": [1], "downsample_channels": [64, 128],
           "neck_channels": 64}  # fmt: skip
    if name == "deepseek-ocr":
        second = {"clip-l-14-224": {"layers": 2, "width": 128, "heads": 2, "image_size": 224, "patch_size": 14}}
    else:
        second = {"qwen2-0-5b": {"layers": 2, "dim": 128, "heads": 4, "kv_heads": 2, "intermediate_size": 640}}
    values["vision_config"]["width"] = {**second, "sam_vit_b": sam}
    values["projector_config"]["input_dim"] = 256 if name == "deepseek-ocr" else 128
    config = ModelConfig.from_dict(values)
    model = VL2(config)
    init_weights(model, 0)
    processor = toy_vlm("base", name).processor
    sample = processor.encode_prompt("<image>\nFree OCR.", [PAGE])
    packed = pack_samples([sample], processor)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    found: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        place = tensor.untyped_storage().data_ptr()
        if tensor.is_floating_point() and place not in weights:
            found[place] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.states(packed)
    expected = activation_bytes(config, (), num_tokens=len(packed), num_tiles=1, value_bytes=4)
    assert expected == pytest.approx(sum(found.values()), rel=0.34)


@both_encoders
def test_operations_are_those_that_pytorch_counts(name: str) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    config = toy_config(name)
    with torch.device("meta"):
        model = VL2(config)
    cost = ForwardCost.of(config)
    for px, vision, projector in (
        (640 if name == "deepseek-ocr" else 768, cost.per_tile_vision, cost.per_tile_projector),
        (1024, cost.per_overview_vision, cost.per_overview_projector),
    ):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            features = model.vision(torch.empty(1, 3, px, px, device="meta"))
            of_vision = counter.get_total_flops()
            model.projector(features)
        assert vision == pytest.approx(of_vision, rel=0.1)
        assert projector == counter.get_total_flops() - of_vision
