"""Attention: the two latent forms agree, positions are exact, and no query reaches beyond its row."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.model.configs import small_model
from vl2.config import LanguageConfig
from vl2.model import VL2, Cache
from vl2.model.attention import AttentionMask, LatentAttention, MLAForm, attend
from vl2.model.rope import rotary_angles, rotate_halves, rotate_pairs


def use_form(model: VL2, form: MLAForm) -> None:
    for module in model.modules():
        if isinstance(module, LatentAttention):
            module.form = form


def new_cache(config: LanguageConfig, lengths: list[int], capacity: int) -> Cache:
    cache = Cache.allocate(config, len(lengths), capacity, dtype=torch.float32, device=torch.device("cpu"))
    generator = torch.Generator().manual_seed(1)
    for layer in cache.layers:
        for tensor in layer:
            tensor.normal_(generator=generator)
    cache.lengths = list(lengths)
    return cache


@pytest.mark.parametrize("q_lora_rank", [None, 16])
@pytest.mark.parametrize("size", ["small", "base"])
@given(lengths=st.lists(st.integers(0, 9), min_size=1, max_size=3), num_new=st.integers(1, 5), seed=st.integers(0, 99))
@settings(max_examples=15, deadline=None, derandomize=True)
def test_naive_and_absorbed_latent_attention_agree(
    size: str, q_lora_rank: int | None, lengths: list[int], num_new: int, seed: int
) -> None:
    model = small_model(size, q_lora_rank=q_lora_rank)
    x = torch.randn(len(lengths), num_new, model.config.language_config.hidden_size, generator=torch.manual_seed(seed))
    states = []
    for form in ("naive", "absorbed"):
        use_form(model, form)
        cache = new_cache(model.config.language_config, lengths, 16)
        with torch.no_grad():
            states.append(model.language.extend(x, cache))
    torch.testing.assert_close(states[0], states[1], atol=2e-4, rtol=2e-4)


def test_the_two_forms_have_the_same_gradients() -> None:
    model = small_model("base")
    x = torch.randn(2, 7, model.config.language_config.hidden_size, generator=torch.manual_seed(0))
    attention = model.language.model.layers[1].self_attn
    angles = rotary_angles(torch.arange(7).expand(2, 7), attention.rope_dim, 10000.0)
    gradients = []
    for form in ("naive", "absorbed"):
        attention.form = form
        attention.zero_grad()
        attention(x, angles, AttentionMask.of_rows(None)).square().sum().backward()
        gradients.append([p.grad.clone() for p in attention.parameters()])
    for naive, absorbed in zip(*gradients, strict=True):
        torch.testing.assert_close(naive, absorbed, atol=1e-3, rtol=1e-3)


def test_queries_are_compressed_where_the_config_says_so() -> None:
    names = {name.split("self_attn.")[1] for name in small_model(q_lora_rank=16).state_dict() if "self_attn" in name}
    assert {"q_a_proj.weight", "q_a_layernorm.weight", "q_b_proj.weight"} <= names
    assert "q_proj.weight" not in names


def test_fewer_key_heads_are_shared_between_query_heads() -> None:
    generator = torch.manual_seed(0)
    q, k, v = (torch.randn(2, heads, 6, 8, generator=generator) for heads in (4, 2, 2))
    mask = AttentionMask.of_rows(None)
    repeated = attend(q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1), mask, 0.3)
    torch.testing.assert_close(attend(q, k, v, mask, 0.3), repeated)
    out = small_model("tiny", num_key_value_heads=2).language.model.layers[0].self_attn
    assert out.k_proj.weight.shape[0] == out.q_proj.weight.shape[0] // 2


def test_values_narrower_than_keys_are_not_changed_by_the_kernel() -> None:
    generator = torch.manual_seed(0)
    q, k = (torch.randn(1, 2, 5, 12, generator=generator) for _ in range(2))
    v = torch.randn(1, 2, 5, 7, generator=generator)
    scores = (q @ k.mT * 0.5).masked_fill(~torch.ones(5, 5).tril().bool(), float("-inf"))
    torch.testing.assert_close(attend(q, k, v, AttentionMask.of_rows(None), 0.5), scores.softmax(-1) @ v)


def test_a_masked_position_never_matters_even_if_it_holds_nan() -> None:
    token_mask_BS = torch.tensor([[False, False, True, True], [True, True, True, True]])
    mask = AttentionMask.of_rows(token_mask_BS)
    assert mask.tensor is not None
    # Row 0: tokens 2 and 3 see only tokens 2 and 3; padding sees itself.
    assert mask.tensor[0, 0].tolist() == [
        [True, False, False, False],
        [False, True, False, False],
        [False, False, True, False],
        [False, False, True, True],
    ]
    assert mask.tensor[1, 0].tolist() == torch.ones(4, 4).tril().bool().tolist()


def test_cached_rows_see_their_own_past_and_themselves() -> None:
    mask = AttentionMask.of_cache([0, 2], 2, torch.device("cpu"))
    assert mask.tensor is not None
    assert mask.tensor[:, 0].int().tolist() == [
        [[1, 0, 0, 0], [1, 1, 0, 0]],
        [[1, 1, 1, 0], [1, 1, 1, 1]],
    ]


@pytest.mark.parametrize("rotate", [rotate_halves, rotate_pairs])
def test_rotated_products_depend_on_distance_only(rotate) -> None:
    generator = torch.manual_seed(0)
    q, k = (torch.randn(1, 1, 1, 16, generator=generator) for _ in range(2))

    def product(query_position: int, key_position: int) -> float:
        at = [rotary_angles(torch.tensor([[p]]), 16, 10000.0) for p in (query_position, key_position)]
        return float((rotate(q, at[0]) * rotate(k, at[1])).sum())

    assert product(7, 3) == pytest.approx(product(1004, 1000), abs=1e-3)
    assert product(7, 3) != pytest.approx(product(7, 5), abs=1e-3)
    assert product(5, 5) == pytest.approx(float((q * k).sum()), abs=1e-4)


def test_angles_are_float32_and_exact_at_far_positions() -> None:
    cos, sin = rotary_angles(torch.tensor([[4095]]), 64, 10000.0)
    exact = 4095 * 10000.0 ** (-torch.arange(0, 64, 2, dtype=torch.float64) / 64)
    assert cos.dtype == sin.dtype == torch.float32
    torch.testing.assert_close(cos[0, 0].double(), exact.cos(), atol=5e-4, rtol=0)
    torch.testing.assert_close(sin[0, 0].double(), exact.sin(), atol=5e-4, rtol=0)


def test_a_full_cache_is_an_assertion_with_the_numbers() -> None:
    model = small_model()
    cache = new_cache(model.config.language_config, [4], 5)
    with torch.no_grad(), pytest.raises(AssertionError, match="holds 5 positions, 6 are needed"):
        model.language.extend(torch.zeros(1, 2, model.config.language_config.hidden_size), cache)


@pytest.mark.parametrize("form", ["auto", "naive"])
@pytest.mark.parametrize("size", ["tiny", "small", "base"])
@pytest.mark.parametrize("lengths", [[0], [4], [2, 5], [3, 3]])
def test_the_last_states_alone_are_those_of_all(size: str, form: MLAForm, lengths: list[int]) -> None:
    model = small_model(size)
    use_form(model, form)
    config = model.config.language_config
    x = torch.randn(len(lengths), 6, config.hidden_size, generator=torch.manual_seed(0))
    whole, last = (new_cache(config, lengths, 16) for _ in range(2))
    with torch.no_grad():
        expected = model.language.extend(x, whole)[:, -1:]
        torch.testing.assert_close(model.language.extend(x, last, last_only=True), expected, atol=1e-4, rtol=1e-4)
    assert last.lengths == whole.lengths
    for layer, other in zip(last.layers, whole.layers, strict=True):
        for one, two in zip(layer, other, strict=True):
            torch.testing.assert_close(one, two)


def test_where_only_the_last_state_is_kept_the_last_layer_runs_its_experts_for_that_alone() -> None:
    model = small_model("tiny")
    config = model.config.language_config
    rows: dict[int, list[int]] = {}
    for number, layer in enumerate(model.language.model.layers):
        layer.post_attention_layernorm.register_forward_hook(
            lambda _, given, out, number=number: rows.setdefault(number, []).append(given[0].shape[1])
        )
    with torch.no_grad():
        model.language.extend(torch.randn(1, 6, config.hidden_size), new_cache(config, [0], 8), last_only=True)
    assert rows == {layer: [6] for layer in range(config.num_hidden_layers - 1)} | {config.num_hidden_layers - 1: [1]}


def test_a_padded_row_asks_for_its_last_state_behind_its_mask() -> None:
    mask_BS = torch.tensor([[False, False, True, True], [True, True, True, True]])
    last = AttentionMask.of_rows(mask_BS).of_last(4)
    assert last.tensor is not None
    assert last.tensor.tolist() == [[[[False, False, True, True]]], [[[True, True, True, True]]]]
    assert AttentionMask.of_rows(None).of_last(4) == AttentionMask(tensor=None, is_causal=False)
    assert AttentionMask.of_cache([3], 4, torch.device("cpu")).of_last(4) == AttentionMask(
        tensor=None, is_causal=False, prefix_length=6
    )


def test_an_adapted_key_value_matrix_is_never_read_past_its_adapter() -> None:
    class Adapted(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * 1.5

    model = small_model("small")
    config = model.config.language_config
    for layer in model.language.model.layers:
        plain = layer.self_attn.kv_b_proj
        layer.self_attn.kv_b_proj = Adapted(plain.in_features, plain.out_features, bias=False)
        layer.self_attn.kv_b_proj.weight = plain.weight
    x = torch.randn(1, 6, config.hidden_size, generator=torch.manual_seed(0))
    with torch.no_grad():
        whole = model.language.extend(x, new_cache(config, [0], 8))
        cache = new_cache(config, [0], 8)
        one_by_one = torch.cat([model.language.extend(x[:, i : i + 1], cache) for i in range(6)], dim=1)
    torch.testing.assert_close(one_by_one, whole, atol=1e-4, rtol=1e-4)
