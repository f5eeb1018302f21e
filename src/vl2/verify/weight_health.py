"""Group 5: check that the stored values are plausible weights. Tensors are read block by block, in bounded memory.

The check finds values that are not finite, runs of zeros from incomplete downloads, and values too large for a weight,
which appear when the bytes are shifted or belong to another file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vl2.checkpoint.safetensors_file import StoredTensor
from vl2.errors import UserError
from vl2.verify.check import GROUPS, Check, listed, number_of, passed_if

GROUP = GROUPS[4]
BLOCK_BYTES = 64 << 20
HOLE_VALUES = 1 << 16  # a run of this many zeros is a hole
SAMPLED_EVERY = 61  # prime, so that the sample covers all columns of a matrix
LARGEST_WEIGHT = 1e5  # larger than any trained weight, and much smaller than the largest values in random bytes
# In these tensors the rows of tokens that never occurred in training may be zeros.
TABLES = ("embed_tokens.weight", "lm_head.weight")


@dataclass(kw_only=True)
class TensorStatistics:
    """Statistics of one tensor's values."""

    not_finite: bool = False
    largest: float = 0.0  # largest absolute value
    holes: int = 0  # aligned runs of HOLE_VALUES zeros
    sampled: int = 0  # size of the sample, which the values below describe
    total: float = 0.0
    squares: float = 0.0
    least: float = math.inf
    most: float = -math.inf

    def add(self, values: Tensor) -> None:
        whole = len(values) // HOLE_VALUES * HOLE_VALUES
        # NaN and infinity propagate through abs and max, so one pass over the values finds them too.
        peaks = values[:whole].view(-1, HOLE_VALUES).abs().amax(dim=1).float()
        rest = values[whole:]
        self.holes += int((peaks == 0).sum())
        for largest in (peaks.max().item() if whole else 0.0, rest.abs().max().float().item() if len(rest) else 0.0):
            self.not_finite |= not math.isfinite(largest)
            self.largest = max(self.largest, largest) if math.isfinite(largest) else self.largest
        sample = values[::SAMPLED_EVERY].double()
        self.sampled += len(sample)
        self.total += float(sample.sum())
        self.squares += float(sample.square().sum())
        self.least, self.most = min(self.least, float(sample.min())), max(self.most, float(sample.max()))

    @property
    def rms(self) -> float:
        return math.sqrt(self.squares / max(1, self.sampled))

    def faults(self, name: str, num_dimensions: int) -> list[str]:
        """Describe what is wrong with the tensor. A bias may be all zeros; a matrix or a norm's weight may not."""
        if self.not_finite:
            return [f"{name} holds NaN or infinity"]
        if self.largest == 0 and (num_dimensions > 1 or name.endswith(".weight")):
            return [f"{name} is all zeros"]
        if self.largest > LARGEST_WEIGHT:
            return [f"{name} holds {self.largest:.3g}, which is no weight"]
        if self.holes and not name.endswith(TABLES):
            return [f"{name} holds {number_of(self.holes, 'run')} of {HOLE_VALUES:,} zeros"]
        if num_dimensions > 1 and self.sampled > 1 and self.least == self.most:
            return [f"{name}: all sampled values are {self.most:.3g}"]
        return []


def check_weights(
    tensors: Mapping[str, StoredTensor], progress: Callable[[int, int], None] | None = None
) -> list[Check]:
    """Read every weight once and check its values. `progress` gets (bytes done, bytes in all)."""
    floats = {name: tensor for name, tensor in tensors.items() if tensor.dtype.is_floating_point}
    total = sum(tensor.nbytes for tensor in floats.values())
    done = 0
    wrong: list[str] = []
    remarks: list[str] = []
    matrices: dict[str, TensorStatistics] = {}
    for name, tensor in sorted(floats.items(), key=lambda item: (item[1].path, item[1].offset)):
        statistics = TensorStatistics()
        try:
            for values in blocks(tensor):
                statistics.add(values)
                done += values.nbytes
                if progress is not None:
                    progress(done, total)
        except (OSError, UserError) as error:
            wrong.append(f"{name}: {error}")
            continue
        wrong += statistics.faults(name, len(tensor.shape))
        if statistics.holes and name.endswith(TABLES):
            remarks.append(f"{name}: {number_of(statistics.holes, 'run')} of {HOLE_VALUES:,} zeros")
        if len(tensor.shape) > 1:
            matrices[name] = statistics
    found = wrong[0] if wrong else f"{number_of(len(floats), 'tensor')}, all finite, none empty"
    found += f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
    check = Check(
        group=GROUP, name="values", verdict=passed_if(not wrong), found=found, details=listed(wrong[1:] + remarks)
    )
    return [check, _statistics(matrices)] if matrices else [check]


def blocks(tensor: StoredTensor) -> Iterator[Tensor]:
    """Yield the values of a tensor in blocks of at most BLOCK_BYTES. Raise UserError if the file ends too early."""
    left = tensor.nbytes
    with tensor.path.open("rb") as file:
        file.seek(tensor.offset)
        while left:
            buffer = bytearray(min(left, BLOCK_BYTES))
            if file.readinto(buffer) != len(buffer):
                raise UserError(f"{tensor.path.name} was cut short")
            left -= len(buffer)
            values = torch.frombuffer(buffer, dtype=tensor.dtype)
            yield values.float() if tensor.dtype.itemsize == 1 else values  # 8-bit floats have no abs


def _statistics(matrices: Mapping[str, TensorStatistics]) -> Check:
    """Report the magnitudes of the weights, to compare two pages. The usual magnitudes are not known: no verdict."""
    ranked = sorted(matrices, key=lambda name: matrices[name].rms)
    largest = max(matrices, key=lambda name: matrices[name].largest)
    sampled = sum(statistics.sampled for statistics in matrices.values())
    middle = ranked[len(ranked) // 2]
    smallest, median, most = (matrices[name].rms for name in (ranked[0], middle, ranked[-1]))
    found = f"rms of {len(ranked):,} matrices: {smallest:.3g} to {most:.3g}, median {median:.3g}, of {sampled:,} values"
    details = tuple(
        f"{what}: {name}, rms {matrices[name].rms:.4g}, largest {matrices[name].largest:.4g}"
        for what, name in (("smallest rms", ranked[0]), ("largest rms", ranked[-1]), ("largest value", largest))
    )
    return Check(group=GROUP, name="statistics", verdict="measured", found=found, details=details)
