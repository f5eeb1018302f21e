"""Load a checkpoint folder: build the model on the meta device, then fill it tensor by tensor.

Only safetensors files are read, and names and shapes must match exactly. Peak memory is that of the model. Golden:
tests/golden/reference/checkpoints.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from vl2.checkpoint.empty_model import materialize
from vl2.checkpoint.expert_share import expert_stacks, keep_share
from vl2.checkpoint.folder import Checkpoint, Progress
from vl2.checkpoint.in_place import FileViews
from vl2.checkpoint.names import Place
from vl2.checkpoint.pages import MappedFile
from vl2.checkpoint.paging import EXPERTS, ExpertPager
from vl2.checkpoint.policy import LoadOptions, Policy, choose_policy
from vl2.checkpoint.safetensors_file import StoredTensor, read_into, read_tensor
from vl2.errors import memory_errors
from vl2.model import VL2
from vl2.quant.quantize_model import allocate_quantized, quantize_model, quantize_tensor

LARGE_BYTES = 128 << 20
# Bytes that a thread reads per task: on a busy machine, submitting many small tensors one by one takes longer.
BATCH_BYTES = 16 << 20
# Two readers already saturate a disk; most of the time goes into page faults on the newly allocated memory.
NUM_READERS = min(4, os.cpu_count() or 1)


@torch.inference_mode(mode=False)  # in a caller's inference mode, this module's threads could not write the weights
def load_model(folder: Path, options: LoadOptions | None = None, progress: Progress | None = None) -> VL2:
    """Return the model of a checkpoint folder, in evaluation mode.

    Raise UserError if tensors are missing, unexpected or of a wrong shape, or if the memory is too small.
    """
    options = options or LoadOptions()
    checkpoint = Checkpoint.of(folder)
    policy = choose_policy(checkpoint, options)
    model, views = read_model(checkpoint, policy, progress)
    if policy.expert_bytes is not None:
        ExpertPager(model, views, policy.expert_bytes).attach()
    if options.adapt is not None:
        options.adapt(model)
    if policy.quantize_at_the_end is not None:
        quantize_model(model, policy.quantize_at_the_end)
    return model


@torch.inference_mode(mode=False)
def read_model(
    checkpoint: Checkpoint,
    policy: Policy,
    progress: Progress | None = None,
    file_kind: Callable[[Path], MappedFile] = MappedFile,
) -> tuple[VL2, FileViews]:
    """Return the model with its weights loaded, and the tensors that it views in its files.

    Experts that the policy pages are mapped but not loaded yet.
    """
    model = checkpoint.build_empty()
    wanted, stored = checkpoint.stored_tensors(model)
    if policy.experts is not None:
        wanted, stored = keep_share(model, policy.experts, wanted, stored)
    if policy.quantize is not None:
        allocate_quantized(model, policy.quantize)
    views = FileViews(stored, policy.dtype, file_kind)
    if policy.in_place == "table":
        views.view_table(model)
    elif policy.in_place == "large":
        views.view_large(model)
    elif policy.in_place == "everything":
        # With paged experts, a huge page would also load parts of neighboring experts, which the budget does not count.
        views.view_all(model, wanted, huge_pages=policy.expert_bytes is None)
    if policy.expert_bytes is not None:
        wanted = [place for place in wanted if EXPERTS not in place.name]

    def bring_or_put(place: Place, tensor: StoredTensor) -> None:
        if not views.bring(place.name):
            put(model, place, tensor)

    with memory_errors(f"the weights of {checkpoint.folder}"):
        is_partial = policy.experts is not None and policy.experts.only_experts
        for part in (experts for _, experts in expert_stacks(model)) if is_partial else (model,):
            materialize(part, policy.dtype, policy.device)
        fill(wanted, stored, bring_or_put, progress)
    views.mlock()
    if checkpoint.quantization is not None:
        model.requires_grad_(False)
    return model.eval(), views


def fill(
    wanted: Sequence[Place],
    stored: Mapping[str, StoredTensor],
    put: Callable[[Place, StoredTensor], None],
    progress: Progress | None,
) -> None:
    """Call `put` for every wanted tensor, in several threads. `progress` gets the bytes done and the total."""

    # Tensors are read in file order, so that the system can read ahead. Large tensors come first: while one is cast or
    # quantized, it is held twice, and at the start little else is in memory.
    def rank(place: Place) -> tuple[bool, Path, int]:
        tensor = stored[place.name]
        return tensor.nbytes < LARGE_BYTES, tensor.path, tensor.offset

    batches = _batches(sorted(wanted, key=rank), stored)
    total = sum(stored[place.name].nbytes for place in wanted)

    def put_all(batch: Sequence[Place]) -> int:
        for place in batch:
            put(place, stored[place.name])
        return sum(stored[place.name].nbytes for place in batch)

    with ThreadPoolExecutor(NUM_READERS) as readers:
        done = 0
        for nbytes in readers.map(put_all, batches):
            done += nbytes
            if progress is not None:
                progress(done, total)


def _batches(wanted: Sequence[Place], stored: Mapping[str, StoredTensor]) -> Iterator[list[Place]]:
    batch: list[Place] = []
    held = 0
    for place in wanted:
        nbytes = stored[place.name].nbytes
        if batch and held + nbytes > BATCH_BYTES:
            yield batch
            batch, held = [], 0
        batch.append(place)
        held += nbytes
    if batch:
        yield batch


def put(model: VL2, place: Place, stored: StoredTensor) -> None:
    """Read a stored tensor into its place in the model, in place; quantize it if its layer is quantized."""
    target = _target(model, place)
    if target is not None:
        read_into(target, stored)
    else:
        _quantize_into(model, place, read_tensor(stored))


def put_values(model: VL2, place: Place, weight: Tensor) -> None:
    """Copy a weight into its place in the model, in place; quantize it if its layer is quantized."""
    target = _target(model, place)
    if target is not None:
        target.copy_(weight)
    else:
        _quantize_into(model, place, weight)


def _target(model: VL2, place: Place) -> Tensor | None:
    """Return the part of the model's parameter that a stored tensor fills; None if the layer is quantized."""
    owner, _, leaf = place.parameter.rpartition(".")
    tensor = getattr(model.get_submodule(owner), leaf, None)
    return place.view(tensor.detach()) if isinstance(tensor, Tensor) else None


def _quantize_into(model: VL2, place: Place, weight: Tensor) -> None:
    part = None if place.rows is None else int(place.rows[0] > 0)
    quantize_tensor(model, place.parameter, weight, expert=place.expert, part=part, name=place.name)
