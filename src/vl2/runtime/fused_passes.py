"""Fused calls of the CPU kernels for the language model: a decoding step, or a chunk of a prompt.

Every row of a decoding step is computed the same way whatever the other rows are, so a batch gives the same bits as
each request alone. Tests compare the calls with the modules within bfloat16's rounding error.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vl2.config import LanguageConfig
from vl2.kernels import Library
from vl2.kernels.matmul import LINE
from vl2.kernels.prefill_ops import Weights, has_row_products
from vl2.kernels.structures import (
    BF16,
    INT4,
    QUANTIZED,
    LayerC,
    MatrixC,
    ModelC,
    PrefillChunkC,
    StackC,
    StepC,
)
from vl2.model import Cache
from vl2.model.attention import LatentAttention, MultiHeadAttention
from vl2.model.int8_cache import Int8Cache
from vl2.model.language import DecoderLayer, LanguageModel
from vl2.model.layers import GatedMLP, RMSNorm
from vl2.model.memory_mapped_experts import MemoryMappedExperts
from vl2.model.moe import Experts, MoE
from vl2.model.rope import rotary_angles
from vl2.quant.modules import QuantizedExperts, QuantizedLinear
from vl2.quant.quantized_matmul import FEW_PREFILL_ROWS, few_rows_of_an_expert
from vl2.runtime.linear import is_plain_linear


class Unsupported(Exception):
    """The kernels do not run this model; the message says why."""


class WeightPointers:
    """Pointers to weights on the CPU. It also keeps the weights in memory, so that the pointers stay valid."""

    def __init__(self, root: nn.Module) -> None:
        """Raise Unsupported if a module under `root` has a forward hook: a fused call runs no module and no hook."""
        for name, module in root.named_modules():
            if module._forward_hooks or module._forward_pre_hooks:
                raise Unsupported(f"{name or type(module).__name__} has a hook")
        self._kept: list[Tensor | Weights] = []  # owners of the memory, in case the module lets go of its tensor

    def address(self, tensor: Tensor, dtype: torch.dtype | None = torch.bfloat16) -> int:
        """Return the address of a weight. Raise Unsupported if it is not a contiguous CPU tensor of this dtype."""
        if type(tensor) not in (Tensor, nn.Parameter) or tensor.device.type != "cpu" or not tensor.is_contiguous():
            raise Unsupported(f"a weight is a {type(tensor).__name__} on {tensor.device} that kernels cannot read")
        if dtype is not None and tensor.dtype != dtype:
            raise Unsupported(f"a weight is in {tensor.dtype}")
        self._kept.append(tensor.detach())
        return tensor.data_ptr()

    def apart(self, experts: MemoryMappedExperts) -> Weights:
        """Return the gate, up and down projections of memory-mapped experts. Raise Unsupported as `address` does."""
        for matrix in experts.parameters():
            self.address(matrix)
        weights = stacks_apart(experts)
        self._kept.append(weights)  # it owns the lists of addresses that the kernels read
        return weights

    def matrix(self, layer: nn.Module) -> MatrixC:
        """Return the weight of a linear layer, plain or quantized. Raise Unsupported for any other layer."""
        if is_plain_linear(layer):
            return MatrixC(BF16, layer.out_features, layer.in_features, self.address(layer.weight), None)
        if isinstance(layer, QuantizedLinear):
            codes, scales = (self.address(t, None) for t in (layer.codes, layer.scales))
            return MatrixC(QUANTIZED[layer.kind], layer.out_features, layer.in_features, codes, scales)
        raise Unsupported(f"a layer is a {type(layer).__name__}")


def stacks_apart(experts: MemoryMappedExperts) -> Weights:
    """Return the gate, up and down projections of bfloat16 experts, each matrix at an address of its own."""
    (D, F), (gate_E, up_E, down_E) = experts.pair(0)[1].shape, experts.addresses()
    return StackC.apart(F, D, gate_E), StackC.apart(F, D, up_E), StackC.apart(D, F, down_E)


LATENT_EPS = 1e-6


class FusedLanguage:
    """Run a language model in one call per decoding step or chunk of a prompt.

    The addresses of its weights are recorded at creation, in the C structures that the kernels read.
    """

    def __init__(self, language: LanguageModel, kernels: Library) -> None:
        """Raise Unsupported if the kernels do not support a layer."""
        decoder = language.model
        self._kernels, self._config = kernels, decoder.config
        self._weights = WeightPointers(language)
        _check_config(self._config)
        layers = [self._layer(layer) for layer in decoder.layers if isinstance(layer, DecoderLayer)]
        self._layers = (LayerC * len(layers))(*layers)
        self._model = self._described(decoder.norm, language.lm_head)
        self._embeddings = decoder.embed_tokens
        self._least_rows, self.prefill_refusal = self._find_least_rows()
        self._rotary_dim, self._angles = decoder.rotary_dim, (torch.empty(0, 0), torch.empty(0, 0))

    def decode(self, token_ids: Sequence[int], caches: Sequence[Cache]) -> Tensor:
        """Append one token to each of B one-row caches, and return the float32 logits [B, V] of the next one.

        A cache that is given several times in succession gets its tokens one after the other, with the same bits as in
        calls of their own.
        """
        rows, ahead = len(token_ids), [0] * len(token_ids)  # tokens of the same cache before a row's
        for row in range(1, rows):
            ahead[row] = ahead[row - 1] + 1 if caches[row] is caches[row - 1] else 0
        lengths = [cache.lengths[0] + before for cache, before in zip(caches, ahead, strict=True)]
        for cache, length in zip(caches, lengths, strict=True):
            assert length < cache.capacity, f"the cache holds {cache.capacity} positions, {length + 1} are needed"
        inputs_BD = self._embeddings(torch.tensor(token_ids)).contiguous()
        positions = [cache.positions[0] + before for cache, before in zip(caches, ahead, strict=True)]
        cosines_BC, sines_BC = (angles[positions].contiguous() for angles in self._table(max(positions) + 1))
        logits_BV = torch.empty(rows, self._model.head.outputs, dtype=torch.float32)
        assert len({type(cache) for cache in caches}) == 1, "the rows of a step are of one form"
        held = [_places(cache) for cache in caches]
        places = [number for layers in zip(*held, strict=True) for place in layers for number in place]
        step = StepC(
            rows=rows,
            threads=torch.get_num_threads(),
            inputs=inputs_BD.data_ptr(),
            lengths=(ctypes.c_int64 * rows)(*lengths),
            cache=(ctypes.c_int64 * len(places))(*places),
            cosines=cosines_BC.data_ptr(),
            sines=sines_BC.data_ptr(),
            logits=logits_BV.data_ptr(),
        )
        self._kernels.decode(ctypes.byref(self._model), ctypes.byref(step))
        for cache in caches:
            cache.advance(1)
        return logits_BV

    def prefill(self, x_1SD: Tensor, cache: Cache) -> Tensor | None:
        """Append S embedded positions to a one-row cache, and return the state of the last one, [D].

        Return None and leave the cache unchanged if there are too few rows, or if the kernels do not support the shape.
        """
        rows, before = x_1SD.shape[1], cache.lengths[0]
        if self._least_rows is None or rows < self._least_rows:
            return None
        end = before + rows
        assert end <= cache.capacity, f"the cache holds {cache.capacity} positions, {end} are needed"
        places = [number for place in _places(cache) for number in place]
        cosines_SC, sines_SC = (angles[before:end] for angles in self._table(end))
        x_1SD, state_D = x_1SD.clone(memory_format=torch.contiguous_format), x_1SD.new_empty(x_1SD.shape[2])
        chunk = PrefillChunkC(
            rows=rows,
            before=before,
            threads=torch.get_num_threads(),
            cache=(ctypes.c_int64 * len(places))(*places),
            cosines=cosines_SC.data_ptr(),
            sines=sines_SC.data_ptr(),
            x=x_1SD.data_ptr(),
            state=state_D.data_ptr(),
        )
        if not self._kernels.prefill(ctypes.byref(self._model), ctypes.byref(chunk)):
            return None
        cache.advance(rows)
        return state_D

    def _find_least_rows(self) -> tuple[int | None, str | None]:
        """Return the least number of rows for which `prefill` is used, or None and the reason why it never is."""
        layers, config = list(self._layers), self._config
        keys = [layer.key for layer in layers]
        matrices = [m for r in layers for m in (r.query, r.value, r.output, r.gate, r.up, r.down) if m.outputs]
        matrices += [stack.first for r in layers if r.router for stack in (r.expert_gate, r.expert_up, r.expert_down)]
        if not has_row_products():
            return None, "this processor has no instructions that multiply blocks of rows"
        # Latents with the rotary key may be an odd multiple of 16, since no product reads both.
        multiples = LINE // 2 if config.use_mla else LINE
        if any(m.outputs % LINE or m.inputs % LINE for m in matrices) or any(m.outputs % multiples for m in keys):
            return None, f"the sides of a weight are no multiples of {LINE}"
        kinds = {matrix.kind for matrix in (*keys, *matrices)}
        # The same limits as in `vl2.runtime.cpu_modules`: with fewer rows, or few for each expert on average, 16-bit
        # activations are multiplied directly by the codes of a quantized weight, which the fused call cannot do.
        least = 2 if kinds == {BF16} else FEW_PREFILL_ROWS + 1
        if INT4 in kinds and config.n_routed_experts and config.num_experts_per_tok:
            rows = few_rows_of_an_expert() * config.n_routed_experts // config.num_experts_per_tok
            least = max(least, rows + 1)
        return least, None

    def _table(self, positions: int) -> tuple[Tensor, Tensor]:
        """Return the cosines and sines of at least so many positions, [positions, C / 2] each."""
        if len(self._angles[0]) < positions:
            count = max(positions, self._config.max_position_embeddings)
            cosines, sines = rotary_angles(torch.arange(count).unsqueeze(0), self._rotary_dim, self._config.rope_theta)
            self._angles = cosines[0], sines[0]
        return self._angles

    def _described(self, norm: RMSNorm, head: nn.Module) -> ModelC:
        config, latent = self._config, self._config.use_mla
        return ModelC(
            num_layers=config.num_hidden_layers,
            width=config.hidden_size,
            heads=config.num_attention_heads,
            kv_heads=config.num_attention_heads if latent else config.num_kv_heads,
            head_dim=0 if latent else config.hidden_size // config.num_attention_heads,
            rank=config.kv_lora_rank if latent else 0,
            nope_dim=config.qk_nope_head_dim if latent else 0,
            rope_dim=config.qk_rope_head_dim if latent else 0,
            value_dim=config.v_head_dim if latent else 0,
            experts=config.n_routed_experts or 0,
            experts_per_token=config.num_experts_per_tok or 0,
            is_sigmoid=config.scoring_func == "sigmoid",
            is_normalized=config.norm_topk_prob,
            routed_scale=config.routed_scaling_factor,
            norm_eps=config.rms_norm_eps,
            latent_eps=LATENT_EPS,
            layers=self._layers,
            final_norm=self._weights.address(norm.weight),
            head=self._matrix(head),
        )

    def _layer(self, layer: DecoderLayer) -> LayerC:
        attention, out = layer.self_attn, LayerC()
        out.input_norm = self._weights.address(layer.input_layernorm.weight)
        out.post_norm = self._weights.address(layer.post_attention_layernorm.weight)
        out.query, out.output = self._matrix(attention.q_proj), self._matrix(attention.o_proj)
        if isinstance(attention, LatentAttention):
            out.key, out.value = self._matrix(attention.kv_a_proj_with_mqa), self._matrix(attention.kv_b_proj)
            if out.value.kind != BF16:
                raise Unsupported("the expansion of the latent is quantized")
            out.latent_norm = self._weights.address(attention.kv_a_layernorm.weight)
        elif isinstance(attention, MultiHeadAttention):
            out.key, out.value = self._matrix(attention.k_proj), self._matrix(attention.v_proj)
        if isinstance(layer.mlp, GatedMLP):
            self._gated(out, layer.mlp)
        elif isinstance(layer.mlp, MoE):
            self._mixture(out, layer.mlp)
        return out

    def _gated(self, out: LayerC, mlp: GatedMLP) -> None:
        out.gate, out.up = self._matrix(mlp.gate_proj), self._matrix(mlp.up_proj)
        out.down = self._matrix(mlp.down_proj)

    def _mixture(self, out: LayerC, moe: MoE) -> None:
        out.router = self._weights.address(moe.gate.weight)
        bias = moe.gate.e_score_correction_bias
        if bias is not None:
            out.expert_bias = self._weights.address(bias, torch.float32)
        if moe.shared_experts is not None:
            self._gated(out, moe.shared_experts)
        experts: nn.Module = moe.experts
        if isinstance(experts, Experts):
            D, F = experts.down_proj.shape[1:]
            first = self._weights.address(experts.gate_up_proj)
            half = F * D * 2  # bytes of one matrix
            out.expert_gate = StackC(MatrixC(BF16, F, D, first, None), 2 * half, 0)
            out.expert_up = StackC(MatrixC(BF16, F, D, first + half, None), 2 * half, 0)
            down = self._weights.address(experts.down_proj)
            out.expert_down = StackC(MatrixC(BF16, D, F, down, None), half, 0)
        elif isinstance(experts, MemoryMappedExperts):
            out.expert_gate, out.expert_up, out.expert_down = self._weights.apart(experts)
        elif isinstance(experts, QuantizedExperts):
            kind = QUANTIZED[experts.kind]
            codes, scales = (self._weights.address(t, None) for t in (experts.gate_up_codes, experts.gate_up_scales))
            steps = [t[0, 0].nbytes for t in (experts.gate_up_codes, experts.gate_up_scales)]
            D, F = experts.width, experts.hidden
            out.expert_gate = StackC(MatrixC(kind, F, D, codes, scales), 2 * steps[0], 2 * steps[1])
            up = MatrixC(kind, F, D, codes + steps[0], scales + steps[1])
            out.expert_up = StackC(up, 2 * steps[0], 2 * steps[1])
            codes, scales = (self._weights.address(t, None) for t in (experts.down_codes, experts.down_scales))
            out.expert_down = StackC(
                MatrixC(kind, D, F, codes, scales), experts.down_codes[0].nbytes, experts.down_scales[0].nbytes
            )
        else:
            raise Unsupported(f"experts are {type(experts).__name__}")

    def _matrix(self, layer: nn.Module) -> MatrixC:
        if getattr(layer, "bias", None) is not None:
            raise Unsupported("a projection has a bias")
        return self._weights.matrix(layer)


def _places(cache: Cache) -> list[tuple[int, ...]]:
    """Return the fields of the kernels' CacheRow for each layer: addresses, and strides in elements.

    The cache has one row. With latent attention keys and values are one tensor.
    """
    is_int8, places = isinstance(cache, Int8Cache), list[tuple[int, ...]]()
    for layer in cache.layers:
        numbers, scales = (layer[: len(layer) // 2], layer[len(layer) // 2 :]) if is_int8 else (layer, ())
        *_, head_stride, position_stride, channel_stride = numbers[0].stride()
        assert channel_stride == 1, "the channels of the cache lie together"
        place = numbers[0].data_ptr(), numbers[-1].data_ptr(), head_stride, position_stride
        if is_int8:
            *_, scale_head_stride, scale_stride, _ = scales[0].stride()
            assert scale_stride == scales[0].shape[-1], "the scales of a head lie together"
            places.append((*place, scales[0].data_ptr(), scales[-1].data_ptr(), scale_head_stride))
        else:
            places.append((*place, 0, 0, 0))
    return places


def _check_config(config: LanguageConfig) -> None:
    if config.q_lora_rank is not None:
        raise Unsupported("queries are compressed")
    if config.rope_scaling is not None:
        raise Unsupported("attention has a scale of its own")
    if (config.n_group or 1) > 1 and config.topk_method != "greedy":
        raise Unsupported("experts are in groups")
    widths = [config.kv_lora_rank or 0] if config.use_mla else [config.hidden_size // config.num_attention_heads]
    if config.use_mla:
        widths += [config.kv_lora_rank or 0, config.qk_rope_head_dim, config.v_head_dim]
    if any(width % 16 for width in widths):
        raise Unsupported("heads are not a multiple of 16 wide")
