"""The processor's inputs are those of vl2.process.Processor, in transformers' calling conventions."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.reference import CHECKPOINTS, IMAGES, SIZES, messages_of, sample_of
from vl2.errors import UserError
from vl2.process.processor import Processor
from vl2.process.sample import collate

pytest.importorskip("transformers")

from transformers import AutoProcessor

from tests.hf.golden import hf_processor
from vl2.hf import VL2DataCollator, VL2Processor
from vl2.hf.collator import model_inputs

pytestmark = pytest.mark.hf

PICTURE = IMAGES / "photo640x480.png"


def user(*parts: object) -> list[dict[str, object]]:
    return [{"role": "user", "content": list(parts)}]


@pytest.mark.parametrize("size", SIZES)
def test_a_chat_gives_the_inputs_of_our_processor(size: str) -> None:
    cases = ("text", "single", "tiled")
    inputs = hf_processor(size).apply_chat_template([messages_of(size, c) for c in cases], add_generation_prompt=True)
    expected = model_inputs(collate([sample_of(size, case) for case in cases], pad="left"))
    # DeepSeek-VL2's overview of an image is a tile; only the DeepSeek-OCR family has overviews apart.
    assert set(inputs) == set(expected) == set(VL2Processor.model_input_names) - {"overviews"}
    for name, tensor in expected.items():
        assert torch.equal(inputs[name], tensor), name
    assert inputs["attention_mask"].dtype == torch.int64


def test_every_way_to_name_an_image_gives_the_same_inputs() -> None:
    processor = hf_processor("base")
    text = {"type": "text", "text": "What is in the picture?"}
    encoded = base64.b64encode(PICTURE.read_bytes()).decode()
    ways = [
        {"type": "image", "image": str(PICTURE)},
        {"type": "image", "image": Image.open(PICTURE)},
        {"type": "image", "path": str(PICTURE)},
        {"type": "image", "url": str(PICTURE)},
        {"type": "image", "base64": encoded},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded}"}},
    ]
    all_inputs = [processor.apply_chat_template(user(way, text), add_generation_prompt=True) for way in ways]
    for inputs in all_inputs[1:]:
        for name, tensor in all_inputs[0].items():
            assert torch.equal(inputs[name], tensor), name


def test_a_raw_prompt_is_encoded_without_the_template() -> None:
    processor = hf_processor("base")
    core: Processor = processor.core
    one = processor(text="<image>\nHello", images=str(PICTURE))
    assert torch.equal(one["input_ids"][0], core.encode_prompt("<image>\nHello", [str(PICTURE)]).input_ids)
    two = processor(text=["Hi", "<image> <image>"], images=[None, [PICTURE, PICTURE]])
    assert two["input_ids"].shape[0] == 2
    assert len(two["grids"]) == 2
    assert two["attention_mask"][0, 0] == 0
    with pytest.raises(UserError, match="2 texts"):
        processor(text=["a", "b"], images=[PICTURE])
    with pytest.raises(UserError, match="1 <image> in the text, but 0 images"):
        processor(text="<image>")


def test_a_finished_conversation_is_closed_and_an_open_one_is_not() -> None:
    processor, ask = hf_processor("base"), {"role": "user", "content": "Hi"}
    answered = [ask, {"role": "assistant", "content": "Hello"}]
    closed = processor.apply_chat_template(answered)["input_ids"][0].tolist()
    open_ = processor.apply_chat_template(answered, continue_final_message=True)["input_ids"][0].tolist()
    assert closed == [*open_, processor.eos_token_id]
    with pytest.raises(UserError, match="add_generation_prompt=True"):
        processor.apply_chat_template([ask])
    with pytest.raises(UserError, match="continue_final_message=True"):
        processor.apply_chat_template(answered, add_generation_prompt=True)


def test_decoding_keeps_grounding_tags_unless_told_otherwise() -> None:
    processor = hf_processor("base")
    tokenizer = processor.core.tokenizer
    text = "<|ref|>a mug<|/ref|><|det|>[[1, 2, 3, 4]]<|/det|>"
    ids = [tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id, tokenizer.pad_id]
    assert processor.decode(ids) == text
    assert processor.decode(torch.tensor(ids), skip_special_tokens=True) == "a mug[[1, 2, 3, 4]]"
    assert processor.decode(ids, skip_special_tokens=False).endswith(text + tokenizer.decode(ids[-2:], False))
    assert processor.batch_decode(torch.tensor([ids, ids])) == [text, text]


@pytest.mark.parametrize("size", SIZES)
def test_a_saved_processor_reads_back(size: str, tmp_path: Path) -> None:
    hf_processor(size).save_pretrained(tmp_path)
    original, saved = ((f / "processor_config.json").read_text("utf-8") for f in (CHECKPOINTS / size, tmp_path))
    assert json.loads(saved) == json.loads(original)
    again = AutoProcessor.from_pretrained(tmp_path)
    inputs = again.apply_chat_template(messages_of(size, "single"), add_generation_prompt=True)
    assert torch.equal(inputs["input_ids"][0], sample_of(size, "single").input_ids)
    again.save_pretrained(tmp_path)


def test_options_of_our_own_reach_the_processor() -> None:
    processor = AutoProcessor.from_pretrained(CHECKPOINTS / "base", tiling="per-image", max_tiles=2)
    assert processor.core.max_tiles == 2


def test_unknown_options_are_refused() -> None:
    processor = hf_processor("base")
    chat = [{"role": "user", "content": "Hi"}]
    with pytest.raises(TypeError, match="truncation"):
        processor(text="Hi", truncation=True)
    with pytest.raises(TypeError, match="tools"):
        processor.apply_chat_template(chat, add_generation_prompt=True, tools=[])
    with pytest.raises(UserError, match="tokenize and return_dict must be True"):
        processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    with pytest.raises(UserError, match="return_tensors must be 'pt'"):
        processor(text="Hi", return_tensors="np")
    with pytest.raises(UserError, match="does not take use_fast"):
        AutoProcessor.from_pretrained(CHECKPOINTS / "base", use_fast=True)


def test_the_collator_takes_samples_and_messages() -> None:
    processor = hf_processor("base")
    messages = [*user({"type": "image", "image": str(PICTURE)}), {"role": "assistant", "content": "A picture."}]
    sample = processor.core.encode(messages, train=True)
    from_samples = VL2DataCollator()([sample, sample])
    from_messages = VL2DataCollator(processor.core)([{"messages": messages}, {"messages": messages, "id": "b"}])
    assert next(iter(from_samples)) == "input_ids"  # by the first entry Trainer tells the batch size
    for name, tensor in from_samples.items():
        assert torch.equal(from_messages[name], tensor), name
    assert torch.equal(from_samples["labels"][0], sample.labels)
    with pytest.raises(UserError, match="remove_unused_columns=False"):
        VL2DataCollator(processor.core)([{}])
    with pytest.raises(UserError, match="need a processor"):
        VL2DataCollator()([{"messages": messages}])
