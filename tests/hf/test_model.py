"""forward, its loss, and checkpoints read and written."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch

from tests.reference import CASES, CHECKPOINTS, SIZES, case_of, reference_vlm, sample_of
from vl2.checkpoint import load_model
from vl2.errors import UserError
from vl2.process.sample import collate

pytest.importorskip("transformers")

from tests.hf.golden import hf_model, load_hf_model
from vl2.hf import VL2Cache, VL2ForCausalLM
from vl2.hf.collator import model_inputs
from vl2.hf.model import CACHE_NAME

pytestmark = pytest.mark.hf

BATCH = ("text", "single", "tiled")


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("size", SIZES)
def test_logits_are_exactly_those_of_our_model(size: str, side: str) -> None:
    batch = collate([sample_of(size, case) for case in BATCH[:2]], pad=side)
    with torch.no_grad():
        ours = reference_vlm(size).model(batch)
        theirs = hf_model(size)(**model_inputs(batch), logits_to_keep=7)
    assert torch.equal(theirs.logits, ours.logits[:, -7:])
    assert torch.equal(theirs.balance_loss, ours.balance_loss)


@pytest.mark.parametrize(("size", "case"), [c for c in CASES if c != ("tiny", "tiled")])
def test_the_loss_is_the_released_one(size: str, case: str) -> None:
    sample = sample_of(size, case)
    labels = sample.input_ids.masked_fill(sample.image_mask, -100).unsqueeze(0)
    with torch.no_grad():
        loss = hf_model(size)(**model_inputs(collate([sample])), labels=labels).loss
    assert loss.item() == pytest.approx(case_of(size, case)["loss_on_text_labels"], abs=1e-4)


def test_padding_and_the_number_of_items_change_the_loss_only_as_they_should() -> None:
    model, samples = hf_model("base"), [sample_of("base", case) for case in BATCH]

    def loss_of(chosen: list[int], num_items: int | None = None) -> torch.Tensor:
        batch = collate([samples[i] for i in chosen], pad="right")
        labels = batch.input_ids.masked_fill(batch.image_mask | ~batch.attention_mask, -100)
        return model(**model_inputs(batch), labels=labels, num_items_in_batch=num_items).loss

    counts = [int((~sample.image_mask[1:]).sum()) for sample in samples]
    with torch.no_grad():
        whole = loss_of([0, 1, 2])
        parts = sum(loss_of([i], num_items=sum(counts)) for i in range(3))
        singles = sum(loss_of([i]) * count for i, count in enumerate(counts)) / sum(counts)
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(singles, whole)


def test_without_a_mask_all_tokens_count_and_text_needs_no_image_arguments() -> None:
    sample = sample_of("small", "text")
    with torch.no_grad():
        bare = hf_model("small")(input_ids=sample.input_ids.unsqueeze(0))
        full = hf_model("small")(**model_inputs(collate([sample])))
    assert torch.equal(bare.logits, full.logits)


def test_a_cache_carries_a_conversation_over_several_calls() -> None:
    model, sample = hf_model("base"), sample_of("base", "two")
    inputs = model_inputs(collate([sample]))
    cut = len(sample.input_ids) - 3
    with torch.no_grad():
        whole = model(**inputs).logits
        first = model(
            input_ids=inputs["input_ids"][:, :cut],
            image_mask=inputs["image_mask"][:, :cut],
            tiles=inputs["tiles"],
            grids=inputs["grids"],
            use_cache=True,
        )
        cache = first[CACHE_NAME]
        rest = model(input_ids=inputs["input_ids"][:, cut:], past_key_values=cache)
    assert isinstance(cache, VL2Cache)
    assert cache.get_seq_length() == len(sample.input_ids)
    torch.testing.assert_close(torch.cat((first.logits, rest.logits), dim=1), whole, atol=1e-4, rtol=1e-4)


def test_a_cache_grows_past_its_first_capacity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vl2.hf.cache.FIRST_CAPACITY", 1)
    ids = sample_of("tiny", "text").input_ids.unsqueeze(0)
    cache = VL2Cache(hf_model("tiny").network.config.language_config)
    with torch.no_grad():
        steps = [hf_model("tiny")(input_ids=ids[:, i : i + 1], cache=cache).logits for i in range(12)]
        whole = hf_model("tiny")(input_ids=ids[:, :12]).logits
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grids": None}, "tiles and grids go together"),
        ({"image_mask": None}, "tiles need an image_mask"),
        ({"tiles": None, "grids": None}, "no tiles"),
        ({"input_ids": None}, "input_ids are needed"),
        ({"output_attentions": True}, "not supported"),
        ({"attention_mask": torch.ones(1, 3)}, "attention_mask must be"),
        ({"attention_mask": torch.tensor([[1, 0] * 32])}, "one run of ones"),
        ({"cache": object()}, "must be a VL2Cache"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change: dict[str, object], message: str) -> None:
    inputs = {**model_inputs(collate([sample_of("base", "single")])), **change}
    with pytest.raises(UserError, match=message):
        hf_model("base")(**inputs)


def test_unknown_arguments_are_refused() -> None:
    with pytest.raises(TypeError, match="pixel_values"):
        hf_model("base")(**model_inputs(collate([sample_of("base", "text")])), pixel_values=torch.zeros(1))


@pytest.mark.parametrize("size", SIZES)
def test_saving_is_bit_identical_and_our_loader_reads_it(size: str, tmp_path: Path) -> None:
    model = hf_model(size)
    model.save_pretrained(tmp_path)
    again = VL2ForCausalLM.from_pretrained(tmp_path)
    ours = load_model(tmp_path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
        assert torch.equal(ours.state_dict()[name], tensor), name
    original, saved = ((folder / "config.json").read_text("utf-8") for folder in (CHECKPOINTS / size, tmp_path))
    assert json.loads(saved) == json.loads(original)
    assert (tmp_path / "model.safetensors").stat().st_size == (CHECKPOINTS / size / "model.safetensors").stat().st_size


def test_saving_over_a_former_save_leaves_none_of_its_shards(tmp_path: Path) -> None:
    model = hf_model("tiny")
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    model.save_pretrained(tmp_path, max_shard_size="1MB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    load_model(tmp_path)
    model.save_pretrained(tmp_path)
    assert [p.name for p in tmp_path.glob("model*")] == ["model.safetensors"]
    assert (tmp_path / "notes.txt").read_text(encoding="utf-8") == "mine"
    load_model(tmp_path)


def test_generation_settings_are_saved_and_read(tmp_path: Path) -> None:
    model = load_hf_model("tiny")
    model.generation_config.max_new_tokens = 3
    model.save_pretrained(tmp_path)
    again = VL2ForCausalLM.from_pretrained(tmp_path)
    assert again.generation_config.max_new_tokens == 3
    assert again.generation_config.eos_token_id == 1


def test_a_checkpoint_that_lacks_a_tensor_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for file in (CHECKPOINTS / "tiny").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    tensors.pop("language.lm_head.weight")
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"lacks 1 tensors: language\.lm_head\.weight"):
        VL2ForCausalLM.from_pretrained(tmp_path)


def test_a_copy_of_the_model_is_its_own() -> None:
    model = hf_model("tiny")
    copied = copy.deepcopy(model)
    assert copied.network._modules is copied._modules
    with torch.no_grad():
        copied.network.language.lm_head.weight.zero_()
    assert model.network.language.lm_head.weight.any()
    ids = sample_of("tiny", "text").input_ids.unsqueeze(0)
    with torch.no_grad():
        assert not copied(input_ids=ids).logits.any()


def test_parameters_have_the_names_of_our_model() -> None:
    assert list(hf_model("base").state_dict()) == list(reference_vlm("base").model.state_dict())
