"""A model with quantized layers: what is replaced, and that all ways to fill them agree."""

from __future__ import annotations

import copy

import pytest
import torch

from tests.model.configs import small_config, small_model
from vl2.checkpoint.empty_model import materialize
from vl2.checkpoint.load import put_values
from vl2.checkpoint.names import places
from vl2.errors import UserError
from vl2.model import VL2
from vl2.model.moe import Router
from vl2.quant.modules import QuantizedExperts, QuantizedLinear
from vl2.quant.quantize_model import (
    SCHEMES,
    SchemeName,
    allocate_quantized,
    quantization_of,
    quantize_model,
    quantized_modules,
    scheme_named,
)


@pytest.mark.parametrize("size", ["tiny", "base"])
def test_what_decides_much_or_costs_nothing_stays_as_it_is(size: str) -> None:
    model = small_model(size)
    quantize_model(model, SCHEMES["int4"])
    assert isinstance(model.language.lm_head, QuantizedLinear)
    assert isinstance(model.language.model.embed_tokens, torch.nn.Embedding)
    kept = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    assert all("kv_b_proj" in name or "attn_pool" in name for name in kept), kept
    assert any(isinstance(module, Router) for module in model.modules())
    assert any(isinstance(module, QuantizedExperts) for module in model.modules())


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("size", ["tiny", "base"])
def test_tensor_by_tensor_gives_the_same_model_as_all_at_once(size: str, name: SchemeName) -> None:
    plain = small_model(size)
    whole = copy.deepcopy(plain)
    replaced = quantize_model(whole, SCHEMES[name])

    with torch.device("meta"):
        streamed = VL2(small_config(size))
    wanted = list(places(streamed))
    assert allocate_quantized(streamed, SCHEMES[name]) == replaced == list(quantized_modules(plain, SCHEMES[name]))
    materialize(streamed, torch.float32, torch.device("cpu"))
    source, state = plain.state_dict(), streamed.state_dict()
    for place in wanted:
        tensor = place.view(source[place.parameter])
        put_values(streamed, place, tensor)
    assert quantization_of(streamed) == name
    assert quantization_of(plain) is None
    expected = whole.state_dict()
    assert list(state) == list(expected)
    for key, tensor in expected.items():
        assert torch.equal(state[key], tensor), key


def test_an_unknown_scheme_is_refused_in_one_line() -> None:
    with pytest.raises(UserError, match="weights must be one of int8, int4, got 'int3'"):
        scheme_named("int3")


@pytest.mark.parametrize("name", SCHEMES)
def test_no_cast_of_the_model_touches_codes_or_scales(name: SchemeName) -> None:
    model = small_model("tiny")
    quantize_model(model, SCHEMES[name])
    held = [module for module in model.modules() if isinstance(module, QuantizedLinear | QuantizedExperts)]
    before = [{key: tensor.clone() for key, tensor in module.named_buffers()} for module in held]
    model.to(torch.bfloat16).to(torch.float32)
    for module, tensors in zip(held, before, strict=True):
        assert all(torch.equal(tensor, tensors[key]) for key, tensor in module.named_buffers())
        assert all(tensor.dtype == tensors[key].dtype for key, tensor in module.named_buffers())


def test_a_weight_that_is_no_number_is_refused_by_its_name() -> None:
    model = small_model("tiny")
    model.language.lm_head.weight.data[3, 5] = float("nan")
    with pytest.raises(UserError, match=r"^language.lm_head: numbers that are not finite, or too large for int4"):
        quantize_model(model, SCHEMES["int4"])
