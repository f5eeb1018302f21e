"""Every stage of the model against the released implementation, on three small random checkpoints."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.reference import (
    CASES,
    SIZES,
    assert_near,
    case_of,
    model_goldens,
    recorded,
    reference_vlm,
    released_tiles,
    sample_of,
    tensors_of,
)
from vl2.infer.image_tokens import embed_prompt, encode_images
from vl2.infer.prefill import prefill
from vl2.model import Cache
from vl2.model.moe import MoE
from vl2.process.sample import collate
from vl2.runtime import PlainRunner


def with_tensor(*names: str) -> list[tuple[str, str]]:
    return [(size, case) for size, case in CASES if any(name in tensors_of(size, case) for name in names)]


def logits_of(size: str, case: str) -> Tensor:
    with torch.no_grad():
        return reference_vlm(size).model(collate([sample_of(size, case)])).logits[0]


@pytest.mark.parametrize(("size", "case"), CASES)
def test_the_prompt_is_the_released_one(size: str, case: str) -> None:
    sample, golden = sample_of(size, case), tensors_of(size, case)
    assert sample.input_ids.tolist() == golden["input_ids"].tolist()
    assert sample.image_mask.tolist() == golden["images_seq_mask"].bool().tolist()
    if len(sample.grids):
        assert sample.grids.tolist() == golden["images_spatial_crop"].tolist()


@pytest.mark.parametrize(("size", "case"), with_tensor("vision_out"))
def test_the_encoder_gives_the_released_features(size: str, case: str) -> None:
    vision, sample, golden = reference_vlm(size).model.vision, sample_of(size, case), tensors_of(size, case)
    with torch.no_grad(), recorded(patches=vision.patch_embed, block=vision.blocks[0]) as seen:
        out = vision(sample.tiles)[released_tiles(sample)]
    assert_near(out[: len(golden["vision_out"])], golden["vision_out"])
    for name, value in (("vision_patch_embed", seen["patches"]), ("vision_block0", seen["block"])):
        if name in golden:
            assert_near(value[released_tiles(sample)][:2], golden[name])
    rms = out.square().mean(dim=(1, 2)).sqrt()
    assert_near(rms, torch.tensor(case_of(size, case)["vision_out_rms_per_tile"]))


@pytest.mark.parametrize(("size", "case"), with_tensor("projector_out"))
def test_the_projector_gives_the_released_tokens(size: str, case: str) -> None:
    sample, golden = sample_of(size, case), tensors_of(size, case)
    with torch.no_grad():
        out = reference_vlm(size).model.encode_tiles(sample.tiles)[released_tiles(sample)]
    assert_near(out[: len(golden["projector_out"])], golden["projector_out"])
    rms = out.square().mean(dim=(1, 2)).sqrt()
    assert_near(rms, torch.tensor(case_of(size, case)["projector_out_rms_per_tile"]))


@pytest.mark.parametrize(("size", "case"), CASES)
def test_embeddings_states_and_logits_are_the_released_ones(size: str, case: str) -> None:
    model, golden = reference_vlm(size).model, tensors_of(size, case)
    layers = {f"hidden_{i + 1}": layer for i, layer in enumerate(model.language.model.layers)}
    with torch.no_grad(), recorded(**layers, norm=model.language.model.norm) as seen:
        output = model(collate([sample_of(size, case)]))
    states = {name: seen[name][0][0] for name in layers}
    # The released code records the last layer after the final norm.
    states[f"hidden_{len(layers)}"] = seen["norm"][0]
    for name, ours in {**states, "logits": output.logits[0]}.items():
        if name in golden:
            assert_near(ours, golden[name])
        else:
            assert_near(ours[-16:], golden[f"{name}_last16"])
    assert output.logits[0, -16:].argmax(-1).tolist() == case_of(size, case)["argmax_ids_last16"]


@pytest.mark.parametrize(("size", "case"), with_tensor("inputs_embeds", "hidden_0_last16"))
def test_visual_tokens_stand_where_the_released_code_puts_them(size: str, case: str) -> None:
    model, sample, golden = reference_vlm(size).model, sample_of(size, case), tensors_of(size, case)
    with torch.no_grad():
        visual = encode_images(PlainRunner(model), sample)
        embeds = model.embed(sample.input_ids[None], sample.image_mask[None], visual)[0]
    if "inputs_embeds" in golden:
        assert_near(embeds, golden["inputs_embeds"])
    else:
        assert_near(embeds[-16:], golden["hidden_0_last16"])


@pytest.mark.parametrize(("size", "case"), with_tensor("router_1_idx"))
def test_tokens_visit_the_released_experts_with_the_released_weights(size: str, case: str) -> None:
    model, golden = reference_vlm(size).model, tensors_of(size, case)
    gates = {
        f"router_{i}": layer.mlp.gate
        for i, layer in enumerate(model.language.model.layers)
        if isinstance(layer.mlp, MoE)
    }
    with torch.no_grad(), recorded(**gates) as seen:
        model(collate([sample_of(size, case)]))
    assert len(gates) == 3
    for name, (weights, _scores, experts) in seen.items():
        order = weights.argsort(dim=-1, descending=True)
        assert torch.equal(experts.gather(1, order), golden[f"{name}_idx"].long())
        assert_near(weights.gather(1, order), golden[f"{name}_weight"], atol=1e-5)


@pytest.mark.parametrize(("size", "case"), with_tensor("cache_0_0"))
def test_the_cache_holds_what_the_released_one_holds(size: str, case: str) -> None:
    vlm, golden = reference_vlm(size), tensors_of(size, case)
    model, config, sample = vlm.model, vlm.model.config.language_config, sample_of(size, case)
    cache = Cache.allocate(config, 1, len(sample.input_ids), dtype=model.dtype, device=model.device)
    with torch.no_grad():
        runner = PlainRunner(model)
        prefill(runner, embed_prompt(runner, sample), cache)
    for layer, tensors in enumerate(cache.layers):
        if config.use_mla:
            latent, key = tensors[0][0].split((config.kv_lora_rank, config.qk_rope_head_dim), dim=-1)
            assert_near(key, golden[f"cache_{layer}_0"][0])
            assert_near(latent, golden[f"cache_{layer}_1"][0])
        else:
            assert_near(tensors[0][0], golden[f"cache_{layer}_0"])
            assert_near(tensors[1][0], golden[f"cache_{layer}_1"])


@pytest.mark.parametrize(("size", "case"), CASES)
def test_the_loss_over_the_prompt_is_the_released_one(size: str, case: str) -> None:
    sample = sample_of(size, case)
    labels = sample.input_ids.masked_fill(sample.image_mask, -100)
    loss = F.cross_entropy(logits_of(size, case)[:-1], labels[1:], ignore_index=-100)
    assert loss.item() == pytest.approx(case_of(size, case)["loss_on_text_labels"], abs=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("size", SIZES)
def test_padding_does_not_change_logits(size: str, side: str) -> None:
    cases = model_goldens(size)["left_padded_batch"]["cases"]
    samples = [sample_of(size, case) for case in cases]
    assert len({len(s.input_ids) for s in samples}) > 1
    with torch.no_grad():
        padded = reference_vlm(size).model(collate(samples, pad=side)).logits
    for row, (case, sample) in enumerate(zip(cases, samples, strict=True)):
        length = len(sample.input_ids)
        ours = padded[row, -length:] if side == "left" else padded[row, :length]
        assert_near(ours, logits_of(size, case))
    assert padded.isfinite().all()
