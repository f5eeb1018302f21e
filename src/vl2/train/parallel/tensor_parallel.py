"""Tensor parallelism: a group of ranks runs the same packs, and divides the work and the weights of every layer.

| part | how it is divided |
|---|---|
| attention of the language model | by heads: each rank holds the rows of its heads, and their columns of the output |
| dense layers and shared experts | by hidden units, in the same way |
| routed experts | by tokens: each rank routes a part of the tokens, so that experts are divided as without this group |
| encoder and projector | by tiles: each rank encodes a part of the tiles |
| head and loss | by trained positions |

Everything else (norms, router, embedding) runs on every rank with the same numbers. The loss of the step is the sum of
the losses of all ranks. Every exchange therefore has its plain adjoint as backward pass (that of a sum over ranks is a
sum over ranks), each rank's gradient of a shared weight is a part of the whole, and FSDP's sum over all ranks is right
for all weights that are not divided here. Those that are divided are summed over the ranks with other packs alone.

Source: arXiv 1909.08053 (columns, then rows, with one sum for both).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from vl2.config import LanguageConfig
from vl2.errors import UserError
from vl2.model import VL2
from vl2.model.attention import LatentAttention, MultiHeadAttention
from vl2.model.layers import GatedMLP
from vl2.model.moe import MoE
from vl2.train.fp8 import product_of
from vl2.train.ranks import Ranks

_ROWS, _COLUMNS = 0, 1  # axes of a weight [outputs, inputs]


def divide_layers(model: nn.Module, mesh: DeviceMesh, ranks: Ranks) -> None:
    """Divide the layers of a model, or of a part of it, among the ranks of a mesh. The weights are on the meta device.

    `check_tensor_parallel` must have accepted the sizes.
    """
    for module in list(model.modules()):
        for linear, axis in _linears(module):
            _divide(linear, axis, mesh, ranks)
        if isinstance(module, MultiHeadAttention):
            module.num_heads //= ranks.size
            module.num_kv_heads //= ranks.size
        elif isinstance(module, LatentAttention):
            module.num_heads //= ranks.size
        elif isinstance(module, MoE):
            _divide_tokens(module, ranks)


def divide_encoder(model: VL2, ranks: Ranks) -> None:
    """Let each rank encode a part of the tiles of a pack."""
    encode = model._encode_tiles

    def encode_part(tiles_I3PP: Tensor) -> Tensor:
        return gather_tiles(encode(own_tiles(tiles_I3PP, ranks)), len(tiles_I3PP), ranks)

    model._encode_tiles = encode_part  # type: ignore[method-assign]


def own_tiles(tiles_I3PP: Tensor, ranks: Ranks) -> Tensor:
    """Return this rank's part of the tiles. All parts have one size, for which blank tiles are added."""
    missing = -len(tiles_I3PP) % ranks.size
    tiles_I3PP = torch.cat((tiles_I3PP, tiles_I3PP.new_zeros(missing, *tiles_I3PP.shape[1:])))
    return tiles_I3PP.chunk(ranks.size)[ranks.rank]


def gather_tiles(own_IQD: Tensor, num_tiles: int, ranks: Ranks) -> Tensor:
    """Return the tokens of all tiles on every rank, [num_tiles, Q, D]. The inverse of `own_tiles`."""
    tokens_IQD = ranks.gather_rows(own_IQD, [len(own_IQD)] * ranks.size)
    # FSDP2's hooks need an output that is no view.
    return tokens_IQD if len(tokens_IQD) == num_tiles else tokens_IQD[:num_tiles].clone()


def own_positions(labels_S: Tensor, place_n: Tensor, ranks: Ranks, ignored: int) -> Tensor:
    """Return labels that train only this rank's part of the trained positions `place_n`.

    The label of a position is that of the next token.
    """
    own_S = torch.full_like(labels_S, ignored)
    targets_n = place_n[ranks.rank :: ranks.size] + 1
    own_S[targets_n] = labels_S[targets_n]
    return own_S


def is_divided(module: nn.Module) -> bool:
    """Return whether a module is a linear layer of which each rank of the group holds a part."""
    return isinstance(module, nn.Linear) and isinstance(module.weight, DTensor)


def check_tensor_parallel(language: LanguageConfig, size: int, num_data: int) -> None:
    """Raise UserError unless `size` ranks can divide every layer, and `num_data` ranks can shard each part."""
    if size == 1:
        return
    if language.attention_bias:
        raise UserError("engine.tensor_parallel needs attention without biases, which this model has")
    counts = {
        "attention heads": language.num_attention_heads,
        "heads of keys and values": language.num_attention_heads if language.use_mla else language.num_kv_heads,
        "hidden units of a dense layer": language.intermediate_size,
        "hidden units of the shared experts": (language.n_shared_experts or 0) * language.moe_intermediate_size,
    }
    for what, count in counts.items():
        if count % size:
            raise UserError(f"engine.tensor_parallel must divide the {count} {what}, got {size}")
    inputs = {language.hidden_size, language.kv_lora_rank or 0, language.q_lora_rank or 0}
    for width in sorted(inputs):
        if width % num_data:
            raise UserError(
                f"engine.tensor_parallel {size} leaves {num_data} ranks with different packs, which cannot shard "
                f"weights with {width} inputs: {num_data} does not divide {width}"
            )


def _linears(module: nn.Module) -> Iterator[tuple[nn.Linear, int]]:
    """Yield the linear layers that are divided, with the axis along which they are."""
    if isinstance(module, MultiHeadAttention):
        yield from ((linear, _ROWS) for linear in (module.q_proj, module.k_proj, module.v_proj))
        yield module.o_proj, _COLUMNS
    elif isinstance(module, LatentAttention):
        yield module.q_b_proj if module.compresses_queries else module.q_proj, _ROWS
        yield module.kv_b_proj, _ROWS
        yield module.o_proj, _COLUMNS
    elif isinstance(module, GatedMLP):
        yield from ((linear, _ROWS) for linear in (module.gate_proj, module.up_proj))
        yield module.down_proj, _COLUMNS


def _divide(linear: nn.Linear, axis: int, mesh: DeviceMesh, ranks: Ranks) -> None:
    weight = linear.weight
    shape = list(weight.shape)
    assert shape[axis] % ranks.size == 0, f"{ranks.size} ranks do not divide {shape}"
    shape[axis] //= ranks.size
    part = torch.empty(shape, dtype=weight.dtype, device="meta")
    divided = DTensor.from_local(part, mesh, [Shard(axis)], run_check=False)
    linear.weight = nn.Parameter(divided, requires_grad=weight.requires_grad)

    def forward(x: Tensor) -> Tensor:
        assert isinstance(linear.weight, DTensor)
        out: Tensor = product_of(linear)(x, linear.weight.to_local())
        return ranks.sum_parts(out) if axis == _COLUMNS else out

    linear.forward = forward  # type: ignore[method-assign, assignment]


def _divide_tokens(moe: MoE, ranks: Ranks) -> None:
    run = moe.routed

    def run_part(x_TD: Tensor, weight_TK: Tensor, expert_TK: Tensor, *, equal_blocks: bool = False) -> Tensor:
        counts = [len(part) for part in torch.arange(len(x_TD)).tensor_split(ranks.size)]
        first = sum(counts[: ranks.rank])
        own = slice(first, first + counts[ranks.rank])
        out_MD = run(x_TD[own], weight_TK[own], expert_TK[own], equal_blocks=equal_blocks)
        return ranks.gather_rows(out_MD, counts)

    moe.routed = run_part  # type: ignore[method-assign]
