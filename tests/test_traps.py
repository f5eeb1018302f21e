"""What hurts users of DeepSeek-VL2 today, one test per row: the cause is reproduced, and our answer is right.

R1 ... R17 number the rows. Where a row needs more than one test, its number is in each name.
"""

from __future__ import annotations

import copy
import inspect
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

import vl2
from tests.model.configs import small_model
from tests.reference import IMAGES, assert_near, messages_of, model_goldens, reference_vlm, sample_of, tensors_of
from tests.test_project import NEVER_NEEDED, requirement_name
from vl2.checkpoint.memory_plan import MemoryPlan
from vl2.eval.tasks import mmmu
from vl2.infer.image_tokens import encode_images
from vl2.infer.vlm import VLM
from vl2.model.attention import MultiHeadAttention
from vl2.model.moe import MoE, Router, update_expert_bias
from vl2.model.rope import rotary_angles
from vl2.process.grounding import box_to_999, format_boxes, parse_strict, parse_tolerant
from vl2.process.sample import collate
from vl2.runtime import PlainRunner

SQUARE = str(IMAGES / "square384.png")


@pytest.mark.parametrize("size", ["small", "base"])
def test_r1_a_cast_after_loading_does_not_touch_the_rotary_angles(size: str) -> None:
    exact = rotary_angles(torch.arange(4096)[None], 64, 10000.0)
    # The cause: positions rebuilt in bfloat16 leave few distinct ones, and angles are off by whole turns.
    rounded = torch.arange(4096).bfloat16()
    assert len(rounded[512:1025].unique()) == 129
    inverse = 1.0 / 10000.0 ** (torch.arange(0, 64, 2) / 64)
    wrong = (rounded.float()[:, None] * inverse.bfloat16().float()).cos()
    assert (wrong[1100] - exact[0][0, 1100]).abs().max() > 0.5

    # Ours: the model moved by .to() gives the angles of before, and nearly the logits of a direct load.
    model = copy.deepcopy(reference_vlm(size).model)
    cast = model.to(torch.bfloat16)
    assert not [name for name, _ in cast.named_buffers() if "rot" in name or "inv_freq" in name]
    recorded = []
    layer = cast.language.model.layers[0]
    handle = layer.register_forward_pre_hook(lambda _m, args: recorded.append(args[1]))
    with torch.no_grad():
        cast(collate([sample_of(size, "text")]))
    handle.remove()
    positions = torch.arange(len(sample_of(size, "text").input_ids))[None]
    expected = rotary_angles(positions, cast.language.model.rotary_dim, 10000.0)
    for ours, right in zip(recorded[0], expected, strict=True):
        assert ours.dtype == torch.float32
        assert torch.equal(ours, right)


def test_r2_tiny_uses_its_own_attention_and_answers_as_released() -> None:
    model = reference_vlm("tiny").model
    assert all(isinstance(layer.self_attn, MultiHeadAttention) for layer in model.language.model.layers)
    homes = {type(module).__module__.split(".")[0] for module in model.modules()}
    assert homes == {"vl2", "torch"}
    reply = reference_vlm("tiny").generate(messages_of("tiny", "single"), max_new_tokens=24)
    assert list(reply.token_ids) == model_goldens("tiny")["cases"]["single"]["generate"]["ids"]


def test_r3_the_base_size_trains_with_its_expert_bias() -> None:
    model = copy.deepcopy(reference_vlm("base").model).train()
    routers = [m for m in model.modules() if isinstance(m, Router)]
    before = [router.e_score_correction_bias.clone() for router in routers]
    gate = routers[0].weight.detach().clone()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    batch = collate([sample_of("base", "grounding")], pad="right")
    losses = []
    for _ in range(4):
        output = model(batch)
        loss = torch.nn.functional.cross_entropy(output.logits[0, :-1], batch.labels[0, 1:], ignore_index=-100)
        (loss + 1e-4 * output.balance_loss).backward()
        optimizer.step()
        optimizer.zero_grad()
        for router, load in zip(routers, output.expert_load, strict=True):
            update_expert_bias(router, load, 0.001)
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert not torch.equal(routers[0].weight, gate)
    for router, bias in zip(routers, before, strict=True):
        moved = (router.e_score_correction_bias - bias).abs()
        assert 0.001 - 1e-6 <= moved.max() <= 0.004 + 1e-6


def test_r4_experts_run_as_sorted_blocks_and_prefill_never_builds_the_attention_matrix() -> None:
    model = small_model()
    moe = next(m for m in model.modules() if isinstance(m, MoE))
    calls = []
    handle = moe.experts.register_forward_hook(lambda _m, args, _out: calls.append(args))
    x = torch.randn(3, 30, model.config.language_config.hidden_size, generator=torch.manual_seed(0))
    with torch.no_grad():
        moe(x)
        experts = moe.gate(x.flatten(0, 1))[2]
    handle.remove()
    rows, counts = calls[0]
    assert len(calls) == 1
    assert len(rows) == experts.numel()
    assert torch.equal(counts, torch.bincount(experts.flatten(), minlength=len(counts)))

    attention = small_model("small").language.model.layers[0].self_attn
    used = dict.fromkeys(("_attend_heads", "_attend_latent"), 0)
    for form in used:
        original = getattr(attention, form)

        def spy(*args: object, form: str = form, original=original) -> torch.Tensor:
            used[form] += 1
            return original(*args)

        setattr(attention, form, spy)
    vlm = reference_vlm("small")
    twin = VLM(copy.copy(vlm.model), vlm.processor, folder=vlm.folder)
    layers = vlm.model.language.model.layers
    old, layers[0].self_attn = layers[0].self_attn, attention
    try:
        twin.chat("Hello", max_new_tokens=4)
    finally:
        layers[0].self_attn = old
    assert used == {"_attend_heads": 1, "_attend_latent": 3}


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
def test_r5_a_padded_batch_answers_as_its_rows_alone_even_when_prefilled_in_chunks(size: str) -> None:
    golden = model_goldens(size)["left_padded_batch"]
    # The released code fails this itself: chunks count positions from 0 in padded rows.
    assert not all(golden["incremental_prefilling_then_generate_same_ids_per_row"])
    vlm = reference_vlm(size)
    chunked = VLM(vlm.model, vlm.processor, folder=vlm.folder)
    chunked.limits = vl2.infer.generate.Limits(prefill_chunk=16)
    replies = chunked.batch([messages_of(size, case) for case in golden["cases"]], max_new_tokens=24)
    assert [list(r.token_ids) for r in replies] == [row["ids"] for row in golden["rows"]]


def test_r6_slots_and_features_are_counted_and_the_sample_is_named() -> None:
    from dataclasses import replace

    sample = sample_of("base", "two")
    with pytest.raises(vl2.UserError, match="base/two"):
        replace(sample, grids=sample.grids[:1])
    with pytest.raises(vl2.UserError, match="base/two"):
        replace(sample, tiles=sample.tiles[:-1])
    # Two images of one sample, and two samples of one batch, each fill their own slots.
    model = reference_vlm("base").model
    with torch.no_grad():
        visual = encode_images(PlainRunner(model), sample)
        together = model(collate([sample, sample_of("base", "single")])).logits
    assert len(visual) == int(sample.image_mask.sum())
    assert_near(together[0, -16:], tensors_of("base", "two")["logits"][-16:])


def test_r7_boxes_are_written_and_read_on_one_scale() -> None:
    width, height = 1371, 843
    for box in [(0, 0, width, height), (10.4, 20.6, 700.2, 333.3), (1370, 842, 1371, 843)]:
        scaled = box_to_999(box, (width, height))
        assert all(0 <= v <= 999 for v in scaled)
        text = format_boxes("a mug", [scaled])
        assert re.fullmatch(r"<\|ref\|>a mug<\|/ref\|><\|det\|>\[\[\d+, \d+, \d+, \d+\]\]<\|/det\|>", text)
        (read,) = vl2.process.grounding.boxes_in_pixels(text, [(width, height)], 0)
        assert read.xyxy_999 == tuple(scaled)
        for ours, given, extent in zip(read.xyxy_px, box, (width, height) * 2, strict=True):
            assert abs(ours - given) <= extent / 999 / 2 + 1e-9


def test_r8_model_text_is_parsed_and_never_run() -> None:
    hostile = "<|ref|>x<|/ref|><|det|>[[__import__('os').abort(), 1, 2, 3]]<|/det|>"
    assert [b for found in parse_tolerant(hostile) for b in found.boxes] == []
    with pytest.raises((ValueError, vl2.UserError)):
        parse_strict(hostile)
    broken = hostile + "<|ref|>cup<|/ref|><|det|>[[1, 2, 3, 4], [5, 6, 7"
    assert [(f.label, b) for f in parse_tolerant(broken) for b in f.boxes] == [("cup", (1, 2, 3, 4))]
    sources = set(Path(vl2.__file__).parent.rglob("*.py"))
    # Running a plot's code in a process of its own, within limits, is what this one file is for.
    sandbox = Path(vl2.__file__).parent / "synth" / "sandbox.py"
    assert sandbox in sources
    for path in sources - {sandbox}:
        code = re.sub(r"\.eval\(\)", "", path.read_text(encoding="utf-8"))
        assert not re.search(r"(?<![\w.])(eval|exec)\(", code), path


def test_r9_grounding_tags_stay_in_the_text_and_boxes_stand_beside_it() -> None:
    vlm = reference_vlm("base")
    tokenizer = vlm.processor.tokenizer
    text = "The <|ref|>mug<|/ref|><|det|>[[1, 2, 30, 40]]<|/det|> is red."
    ids = [*tokenizer.encode(text), tokenizer.eos_id]
    assert tokenizer.decode(ids) == text
    stream = tokenizer.stream()
    assert "".join(stream.push(i) for i in ids) + stream.flush() == text


def test_r10_a_third_image_changes_the_others_only_by_the_released_rule() -> None:
    images = [str(IMAGES / name) for name in ("square768.png", "tall300x900.png", "wide1500x400.png")]

    def grids(tiling: str, count: int) -> list[list[int]]:
        content = [{"type": "image", "image": image} for image in images[:count]]
        processor = reference_vlm("base").processor.with_tiling(tiling)
        return processor.encode([{"role": "user", "content": content}]).grids.tolist()

    assert grids("paper", 3) == [[1, 1]] * 3
    assert grids("paper", 2) != [[1, 1]] * 2
    assert grids("per-image", 3)[:2] == grids("per-image", 2) == grids("paper", 2)

    # A budget bounds the whole conversation, and a later turn leaves earlier images as they were.
    processor = reference_vlm("base").processor.with_tiling("budget:100")
    first = {"role": "user", "content": [{"type": "image", "image": images[0]}]}
    answer = {"role": "assistant", "content": "ok"}
    later = {"role": "user", "content": [{"type": "image", "image": images[1]}]}
    alone, both = processor.encode([first]), processor.encode([first, answer, later])
    assert both.grids[:1].tolist() == alone.grids.tolist() != [[1, 1]]
    assert int(both.image_mask.sum()) <= 100
    assert both.input_ids[: len(alone.input_ids)].tolist() == alone.input_ids.tolist()


def test_r11_the_evaluation_says_which_protocol_gives_the_published_figure() -> None:
    assert mmmu.PUBLISHED_PROTOCOL == "vlmevalkit"
    image = Image.new("RGB", (384, 384))
    question = mmmu.Question(text="What is in <image 1>?", options=["a", "b"], images=[image])
    asked = mmmu.turns_of(question)
    sample = reference_vlm("tiny").processor.encode(asked)
    plain = reference_vlm("tiny").processor.encode(mmmu.turns_of(question, "plain"))
    assert (plain.grids.tolist(), sample.grids.tolist()) == ([[1, 1]], [[2, 2]])


def test_r12_every_name_that_the_package_offers_exists() -> None:
    # Examples in README and docs are run by tests/test_examples.py.
    assert all(hasattr(vl2, name) for name in vl2.__all__)


def test_r13_no_default_of_an_architecture_can_be_wrong() -> None:
    from vl2 import config

    for kind in (config.LanguageConfig, config.VisionConfig, config.ProjectorConfig):
        assert all(p.default is inspect.Parameter.empty for p in inspect.signature(kind).parameters.values())
    model = small_model(aux_loss_alpha=0.0)  # training crashed with this weight
    output = model.train()(collate([sample_of("base", "text")]))
    (output.logits.mean() + 0.0 * output.balance_loss).backward()
    with pytest.raises(vl2.UserError, match="topk_method must be one of"):
        small_model(topk_method="gready")


def test_r14_experts_get_gradients_in_evaluation_mode() -> None:
    model = small_model().eval()
    model(collate([sample_of("base", "text")])).logits.square().mean().backward()
    for moe in (m for m in model.modules() if isinstance(m, MoE)):
        assert moe.experts.gate_up_proj.grad.abs().sum() > 0
        assert moe.experts.down_proj.grad.abs().sum() > 0


def test_r15_nothing_from_the_stack_of_2023_is_needed() -> None:
    from tests.test_project import project_table

    table = project_table()
    needed = {requirement_name(r) for r in table["dependencies"]}
    assert not needed & set(NEVER_NEEDED)
    assert table["requires-python"] == ">=3.10"
    assert not [r for r in table["dependencies"] if "==" in r or "<" in r]


def test_r16_memory_is_known_before_loading_and_logits_are_not_kept() -> None:
    config = vl2.config.preset("small")
    assert MemoryPlan.of(config, "bfloat16", 4096).weight_bytes == pytest.approx(32.3e9, rel=0.01)
    assert MemoryPlan.of(config, "int4", 4096).total < 12e9
    vlm = reference_vlm("small")
    rows = []
    handle = vlm.model.language.lm_head.register_forward_hook(lambda _m, _x, out: rows.append(out.shape))
    vlm.generate(messages_of("small", "tiled"), max_new_tokens=1)
    handle.remove()
    assert [tuple(r) for r in rows] == [(vlm.model.config.language_config.vocab_size,)]


def test_r17_batches_of_any_mix_work_and_a_system_prompt_has_an_effect() -> None:
    vlm = reference_vlm("base")
    batch = collate([sample_of("base", "text"), sample_of("base", "single")])
    assert batch.image_mask.dtype == batch.attention_mask.dtype == torch.bool
    with torch.no_grad():
        assert vlm.model(batch).logits.isfinite().all()
    plain = vlm.chat("Day or night?", [SQUARE], max_new_tokens=8)
    told = vlm.chat("Day or night?", [SQUARE], system="You answer in one word.", max_new_tokens=8)
    assert told.usage.prompt_tokens > plain.usage.prompt_tokens
    assert told.token_ids != plain.token_ids
