"""Gradients, Trainer and PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.reference import CHECKPOINTS, IMAGES, SIZES, sample_of
from vl2.checkpoint import load_model
from vl2.errors import UserError
from vl2.process.sample import collate

pytest.importorskip("transformers")
pytest.importorskip("peft")

import peft
import transformers

from tests.hf.golden import hf_processor, load_hf_model
from vl2.hf import VL2DataCollator, VL2ForCausalLM
from vl2.hf.collator import model_inputs

pytestmark = pytest.mark.hf

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj", "kv_a_proj_with_mqa", "kv_b_proj"]
DENSE = ["gate_proj", "up_proj", "down_proj"]
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


def training_batch(size: str) -> dict[str, Tensor]:
    batch = collate([sample_of(size, "text"), sample_of(size, "single")], pad="right")
    return {
        **model_inputs(batch),
        "labels": batch.input_ids.masked_fill(batch.image_mask | ~batch.attention_mask, -100),
    }


@pytest.mark.parametrize("size", SIZES)
def test_gradients_reach_every_parameter_that_the_pass_reads(size: str) -> None:
    model = load_hf_model(size).train()
    model(**training_batch(size)).loss.backward()
    silent = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert {name for name in silent if not name.startswith("vision.attn_pool")} == set()
    experts = [p.grad for name, p in model.named_parameters() if ".experts." in name]
    assert experts
    assert all((grad.flatten(1).norm(dim=1) > 0).sum() > 1 for grad in experts)


def trainer_of(model: Any, folder: Path, **options: Any) -> Any:
    data = [
        {
            "messages": [
                {"role": "user", "content": [{"type": "image", "image": str(IMAGES / name)}]},
                {"role": "assistant", "content": answer},
            ]
        }
        for name, answer in (("small50x37.png", "Small."), ("square384.png", "A square of colours."))
    ] * 2
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        learning_rate=1e-3,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        remove_unused_columns=False,
        save_strategy="no",
        **{"max_steps": 1, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, **options},
    )
    return transformers.Trainer(
        model=model,
        args=arguments,
        train_dataset=data,
        eval_dataset=data[:2],
        data_collator=VL2DataCollator(hf_processor("base").core),
        processing_class=hf_processor("base"),
    )


def test_trainer_takes_a_step_evaluates_and_saves_a_checkpoint_that_loads(tmp_path: Path) -> None:
    model = load_hf_model("base")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer = trainer_of(model, tmp_path)
    first = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < first
    moved = [name for name, p in model.named_parameters() if not torch.equal(p, before[name])]
    assert any(".experts." in name for name in moved)
    trainer.save_model()
    loaded = load_model(tmp_path).state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in model.state_dict().items())
    assert (tmp_path / "tokenizer.json").is_file()


def test_accumulating_gradients_gives_the_loss_of_the_whole_batch(tmp_path: Path) -> None:
    losses = []
    for batch_size, steps in ((4, 1), (1, 4)):
        sizes = {"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": steps}
        losses.append(trainer_of(load_hf_model("base"), tmp_path, **sizes).train().training_loss)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def lora_model(size: str, **options: Any) -> Any:
    torch.manual_seed(0)
    config = peft.LoraConfig(
        r=4, lora_alpha=8, task_type="CAUSAL_LM", init_lora_weights=False, **{"target_modules": ATTENTION, **options}
    )
    return peft.get_peft_model(load_hf_model(size), config)


TARGETS: list[dict[str, Any]] = [
    {"target_modules": ATTENTION},
    {"target_modules": [*ATTENTION, *DENSE]},
    {"target_modules": ["o_proj"], "target_parameters": EXPERTS},
]


@pytest.mark.parametrize("targets", TARGETS, ids=["attention", "attention and dense", "experts"])
@pytest.mark.parametrize("size", ["tiny", "base"])
def test_an_adapter_trains_saves_loads_and_merges(size: str, targets: dict[str, Any], tmp_path: Path) -> None:
    model, batch = lora_model(size, **targets), training_batch(size)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    model.train()
    model(**batch).loss.backward()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert all("lora_" in name for name in trained)
    assert all(p.grad is not None and p.grad.any() for name, p in model.named_parameters() if name in trained)
    optimizer.step()
    model.eval()
    with torch.no_grad():
        adapted = model(**batch).logits
        plain = load_hf_model(size)(**batch).logits
    assert (adapted - plain).abs().max() > 0.1

    model.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(load_hf_model(size), tmp_path).eval()
    merged = model.merge_and_unload()
    assert type(merged) is VL2ForCausalLM
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, adapted)
        torch.testing.assert_close(merged(**batch).logits, adapted, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("size", SIZES)
def test_a_model_with_an_adapter_generates_as_the_merged_one(size: str) -> None:
    model = lora_model(size, target_modules=[*ATTENTION, *DENSE]).eval()
    inputs = model_inputs(collate([sample_of(size, "text"), sample_of(size, "single")]))
    options = {"max_new_tokens": 8, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    adapted = model.generate(**inputs, **options)
    merged = model.merge_and_unload().generate(**inputs, **options)
    assert adapted["sequences"].tolist() == merged["sequences"].tolist()
    torch.testing.assert_close(torch.stack(adapted["logits"]), torch.stack(merged["logits"]), atol=5e-3, rtol=1e-3)


def test_an_adapter_file_names_our_modules_and_its_folder_loads_by_pefts_auto_class(tmp_path: Path) -> None:
    from safetensors import safe_open

    model = lora_model("small").eval()
    model.save_pretrained(tmp_path)
    hf_processor("small").save_pretrained(tmp_path)  # as Trainer does
    with safe_open(tmp_path / "adapter_model.safetensors", "pt") as file:
        names = set(file.keys())
    assert "base_model.model.language.model.layers.0.self_attn.kv_b_proj.lora_A.weight" in names
    loaded = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path).eval()
    batch = training_batch("small")
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, model(**batch).logits)
    with pytest.raises(UserError, match="AutoPeftModelForCausalLM"):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path)


def test_an_adapter_added_by_transformers_itself_is_saved_alone_and_peft_reads_it(tmp_path: Path) -> None:
    model, batch = load_hf_model("base"), training_batch("base")
    try:
        model.add_adapter(peft.LoraConfig(target_modules=ATTENTION, init_lora_weights=False))
    except ValueError as error:  # this transformers wants a newer peft than is installed
        pytest.skip(str(error))
    model.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("model*"))
    again = peft.PeftModel.from_pretrained(load_hf_model("base"), tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, model.eval()(**batch).logits)


def test_the_vocabulary_has_room_or_is_refused() -> None:
    model = load_hf_model("tiny")
    assert model.resize_token_embeddings(2040) is model.get_input_embeddings()
    assert model.get_output_embeddings().weight.shape[0] == 2048
    with pytest.raises(UserError, match="2048 ids, 2049 were asked for"):
        model.resize_token_embeddings(2049)


def test_a_model_with_adapters_inside_is_not_saved_as_a_whole_one(tmp_path: Path) -> None:
    model = lora_model("tiny")
    with pytest.raises(UserError, match="merge adapters"):
        model.get_base_model().save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))


def test_trainer_trains_an_adapter_and_leaves_the_rest(tmp_path: Path) -> None:
    model = lora_model("base")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer = trainer_of(model, tmp_path)
    trainer.train()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved
    assert all("lora_" in name for name in moved)
    trainer.save_model()
    assert (tmp_path / "adapter_model.safetensors").is_file()
    assert str(CHECKPOINTS / "base") in (tmp_path / "adapter_config.json").read_text(encoding="utf-8")
