"""The other ranks: they load their share of the experts and run it when the first rank says so."""

from __future__ import annotations

import torch
from torch import nn

from vl2.checkpoint import LoadOptions, load_model
from vl2.checkpoint.expert_share import ExpertShare, expert_stacks
from vl2.expert_parallel.layer import agree, describe_failure, run_layer
from vl2.expert_parallel.messages import Kind, LoadRequest, receive
from vl2.runtime.gpu_modules import fast_experts
from vl2.train.ranks import Ranks


def follow(ranks: Ranks) -> None:
    """Do what the first rank says until it says stop.

    Raise RankLost if a rank fails, with the message that the first rank has too. An error of a collective operation
    passes through: `vl2.train.ranks.why_lost` tells what it means.
    """
    experts: list[nn.Module] = []
    empty = torch.empty(0)
    while (message := receive(ranks)).kind is not Kind.STOP:
        if message.kind is Kind.LOAD:
            request: LoadRequest | None = ranks.broadcast_object(None)
            assert request is not None
            failure: str | None = None
            try:
                experts, empty = load_share(request, ranks)
            except Exception as error:  # whatever it is, the first rank must not wait for this one
                failure = describe_failure(ranks, error)
            agree(ranks, failure)
        elif message.kind is Kind.RUN:
            with torch.inference_mode():
                run_layer(ranks, experts[message.layer], empty, message.counts)


def load_share(request: LoadRequest, ranks: Ranks) -> tuple[list[nn.Module], torch.Tensor]:
    """Return this rank's experts of every MoE layer, and no rows of their width and type, [0, D]."""
    options = LoadOptions(
        device=ranks.device,
        dtype=request.dtype,
        only_answers=True,
        weights=request.weights,
        experts=ExpertShare(rank=ranks.rank, size=ranks.size, only_experts=True),
    )
    model = load_model(request.folder, options)
    dtype = request.dtype or getattr(torch, model.config.torch_dtype)
    empty = torch.empty(0, model.config.language_config.hidden_size, dtype=dtype, device=ranks.device)
    return [fast_experts(experts) for _, experts in expert_stacks(model)], empty
