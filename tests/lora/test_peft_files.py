"""Adapters exchanged with the peft library, both ways, on `vl2.hf`'s model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.lora.adapted import EVERYTHING, adapted_model, base_model, batch_of, logits, tree_bytes
from tests.reference import CHECKPOINTS, SIZES
from vl2.errors import UserError
from vl2.lora.attach import is_adapted, lora_layers
from vl2.lora.peft_files import CONFIG, WEIGHTS, load_adapter, save_adapter
from vl2.lora.spec import LoRASpec


@pytest.mark.parametrize("size", SIZES)
def test_a_saved_adapter_loads_as_it_was(size: str, tmp_path: Path) -> None:
    model, batch = adapted_model(size), batch_of(size)
    save_adapter(model, tmp_path / "adapter", str(CHECKPOINTS / size))
    again = base_model(size)
    load_adapter(again, tmp_path / "adapter")
    assert torch.equal(logits(again, batch), logits(model, batch))
    assert tree_bytes(tmp_path / "adapter") < tree_bytes(CHECKPOINTS / size)


def test_an_adapter_keeps_the_scale_of_every_layer(tmp_path: Path) -> None:
    model = adapted_model("base", LoRASpec(rank=4, alpha=8.0, is_rank_stabilized=True, targets=EVERYTHING.targets))
    layers = dict(lora_layers(model))
    layers["projector.layers.0"].scale = 0.25
    layers["language.model.layers.2.mlp.experts"].scale = 0.5
    save_adapter(model, tmp_path)
    again = base_model("base")
    load_adapter(again, tmp_path)
    assert {name: layer.scale for name, layer in lora_layers(again)} == {n: layer.scale for n, layer in layers.items()}


def peft_model(size: str) -> Any:
    from tests.hf.golden import load_hf_model

    return load_hf_model(size)


def peft_logits(model: Any, size: str) -> torch.Tensor:
    from vl2.hf.collator import model_inputs

    with torch.no_grad():
        return model.eval()(**model_inputs(batch_of(size))).logits


@pytest.mark.hf
@pytest.mark.parametrize("size", SIZES)
def test_peft_reads_our_adapter_and_computes_the_same(size: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    peft = pytest.importorskip("peft", minversion="0.20")
    model = adapted_model(size)
    save_adapter(model, tmp_path, str(CHECKPOINTS / size))
    theirs = peft.PeftModel.from_pretrained(peft_model(size), tmp_path)
    # Ours multiplies rows by B and A one after the other, theirs adds their product to the weights of experts.
    torch.testing.assert_close(peft_logits(theirs, size), logits(model, batch_of(size)), atol=2e-3, rtol=1e-3)
    assert not torch.allclose(peft_logits(peft_model(size), size), logits(model, batch_of(size)), atol=0.05)


STACKED = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
PEFT_TARGETS: dict[str, dict[str, Any]] = {
    "linear layers": {"target_modules": ["q_proj", "o_proj", "kv_b_proj", "gate_proj", "qkv", "projector.layers.0"]},
    "experts": {"target_modules": ["o_proj"], "target_parameters": STACKED},
    "one parameter": {"target_modules": [], "target_parameters": ["mlp.experts.gate_up_proj"]},
    "patterns": {
        "target_modules": ["q_proj", "o_proj"],
        "target_parameters": STACKED,
        "rank_pattern": {"o_proj": 2, "mlp.experts.down_proj": 3},
        "alpha_pattern": {"layers.0.self_attn.q_proj": 5, "mlp.experts.gate_up_proj": 3},
    },
    "rank stabilised": {"target_modules": ["q_proj"], "use_rslora": True},
}  # fmt: skip


@pytest.mark.hf
@pytest.mark.parametrize("targets", PEFT_TARGETS.values(), ids=PEFT_TARGETS)
@pytest.mark.parametrize("size", ["tiny", "base"])
def test_we_read_an_adapter_of_peft_and_compute_the_same(size: str, targets: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    peft = pytest.importorskip("peft", minversion="0.20")
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", init_lora_weights=False, **targets)
    theirs = peft.get_peft_model(peft_model(size), config)
    theirs.save_pretrained(tmp_path)
    model = base_model(size)
    before = logits(model, batch_of(size))
    load_adapter(model, tmp_path)
    torch.testing.assert_close(logits(model, batch_of(size)), peft_logits(theirs, size), atol=5e-3, rtol=1e-3)
    assert (logits(model, batch_of(size)) - before).abs().max() > 0.1


def test_experts_of_an_older_peft_are_read_in_its_layout(tmp_path: Path) -> None:
    """Before 0.20 a stack was taken for [E, in, out]: A is [E * r, out], B is [in, r * E], the product transposed."""
    model = adapted_model("base", LoRASpec(rank=4, alpha=8.0, targets=("experts",)))
    save_adapter(model, tmp_path / "new")
    tensors = load_file(tmp_path / "new" / WEIGHTS)
    (tmp_path / "old").mkdir()
    old = {}
    for name in {name.rpartition(".lora_")[0] for name in tensors}:
        a, b = tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"]
        E = model.config.language_config.n_routed_experts
        assert E is not None
        r = a.shape[0] // E
        old[f"{name}.lora_A.weight"] = b.view(-1, r, E).permute(2, 1, 0).reshape(E * r, -1).contiguous()
        old[f"{name}.lora_B.weight"] = a.view(E, r, -1).permute(2, 1, 0).reshape(-1, r * E).contiguous()
    save_file(old, tmp_path / "old" / WEIGHTS)
    config = json.loads((tmp_path / "new" / CONFIG).read_text(encoding="utf-8"))
    (tmp_path / "old" / CONFIG).write_text(json.dumps({**config, "peft_version": "0.18.1"}), encoding="utf-8")
    again = base_model("base")
    load_adapter(again, tmp_path / "old")
    assert torch.equal(logits(again, batch_of("base")), logits(model, batch_of("base")))


def spoil_config(folder: Path, **values: Any) -> None:
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    (folder / CONFIG).write_text(json.dumps({**config, **values}), encoding="utf-8")


def spoil_tensors(folder: Path, change: Any) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


A_NAME = "base_model.model.language.model.layers.0.self_attn.q_proj.lora_A.weight"
DAMAGE: dict[str, tuple[Any, str]] = {
    "no config": (lambda folder: (folder / CONFIG).unlink(), "is this the folder of an adapter"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), "no adapter_model.safetensors"),
    "broken config": (lambda folder: (folder / CONFIG).write_text("{"), "not valid JSON"),
    "another kind": (lambda folder: spoil_config(folder, peft_type="IA3"), "does not describe a LoRA adapter"),
    "PiSSA": (lambda folder: spoil_config(folder, init_lora_weights="pissa_niter_4"), "init_lora_weights = 'pissa_n"),
    "OLoRA": (lambda folder: spoil_config(folder, init_lora_weights="OLoRA"), "changes the weights under it too"),
    "DoRA": (lambda folder: spoil_config(folder, use_dora=True), "use_dora = True"),
    "a lost half": (lambda folder: spoil_tensors(folder, lambda t: t.pop(A_NAME)), "only one of the two matrices"),
    "another width": (
        lambda folder: spoil_tensors(folder, lambda t: t.update({A_NAME: torch.zeros(4, 7)})),
        r"this model needs \[4, \d+\]",
    ),
    "another model": (
        lambda folder: spoil_tensors(
            folder, lambda t: t.update({A_NAME.replace("layers.0", f"layers.{n}").replace("_A", f"_{m}"): torch.zeros(4, 4) for n in (99,) for m in "AB"})  # noqa: E501
        ),
        "there is no language.model.layers.99",
    ),
    "a stray tensor": (
        lambda folder: spoil_tensors(folder, lambda t: t.update({"base_model.model.x.lora_magnitude_vector": torch.zeros(1)})),  # noqa: E501
        "only one of the two matrices of base_model.model.x",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_adapter_is_refused_and_leaves_the_model_plain(damage: Any, message: str, tmp_path: Path) -> None:
    save_adapter(adapted_model("tiny"), tmp_path)
    damage(tmp_path)
    model = base_model("tiny")
    with pytest.raises(UserError, match=message):
        load_adapter(model, tmp_path)
    assert not is_adapted(model)


def test_nothing_is_overwritten_and_a_plain_model_has_nothing_to_save(tmp_path: Path) -> None:
    model = adapted_model("tiny")
    save_adapter(model, tmp_path)
    with pytest.raises(UserError, match="holds an adapter already"):
        save_adapter(model, tmp_path)
    with pytest.raises(UserError, match="no adapter to save"):
        save_adapter(base_model("tiny"), tmp_path / "other")
