"""Group 2: check the names, shapes and types of all tensors in the headers of the weight files. Reads no weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from math import prod

import torch

from vl2.checkpoint.empty_model import build_empty
from vl2.checkpoint.folder import INDEX
from vl2.checkpoint.names import shapes
from vl2.checkpoint.quantization_config import QuantizationConfig
from vl2.checkpoint.safetensors_file import StoredTensor
from vl2.config import ModelConfig
from vl2.errors import UserError
from vl2.verify.check import GROUPS, Check, listed, number_of, passed_if
from vl2.verify.subject import Subject, index_names

GROUP = GROUPS[1]
BIAS = "e_score_correction_bias"  # may be float32 too, because its type in the released files is not known
Shapes = dict[str, tuple[int, ...]]


def expected_shapes(config: ModelConfig) -> Shapes:
    """Return the shape of every tensor that a checkpoint must have, by its released name."""
    return {place.name: shape for place, shape in shapes(build_empty(config)).items()}


def check_tensors(subject: Subject, tensors: Mapping[str, StoredTensor]) -> list[Check]:
    config = subject.expected
    if config is None:
        return [_not_checked("config.json cannot be used, and the name is of no released size")]
    try:
        quantization: QuantizationConfig | None = subject.quantization
    except UserError as error:
        return [Check(group=GROUP, name="names", verdict="fail", found=str(error))]
    if quantization is not None:
        return [
            _not_checked(f"the files are quantized to {quantization.weights}: they are checked when they are loaded")
        ]
    shapes = expected_shapes(config)
    if subject.is_settings_only:
        return _check_index_alone(subject, shapes)
    if not tensors:
        return [Check(group=GROUP, name="names", verdict="fail", found="no weight file can be read")]
    return [
        _check_names(shapes, list(tensors), of=subject.size),
        _check_shapes(shapes, tensors),
        _check_types(subject, tensors),
        _check_bytes(shapes, tensors),
    ]


def _not_checked(reason: str) -> Check:
    return Check(group=GROUP, name="names, shapes, types", verdict="not checked", found=reason)


def _check_index_alone(subject: Subject, shapes: Shapes) -> list[Check]:
    if not (subject.folder / INDEX).is_file():
        return [_not_checked("the weight files are not on this machine")]
    try:
        named = list(index_names(subject.folder / INDEX))
    except UserError as error:
        return [Check(group=GROUP, name="names", verdict="fail", found=str(error))]
    reason = "not all weight files are on this machine"
    return [
        _check_names(shapes, named, of=subject.size),
        Check(group=GROUP, name="shapes and types", verdict="not checked", found=reason),
    ]


def _check_names(shapes: Shapes, names: list[str], *, of: str | None) -> Check:
    stored = set(names)
    missing = [name for name in shapes if name not in stored]
    unexpected = sorted(stored - shapes.keys())
    lines = [f"missing: {name}" for name in missing] + [f"not expected: {name}" for name in unexpected]
    found = f"{number_of(len(shapes), 'tensor')}, as {of or 'its config.json'} has them"
    if lines:
        found = f"{len(missing)} missing, {len(unexpected)} not expected, of {len(shapes):,}: {lines[0]}"
    return Check(group=GROUP, name="names", verdict=passed_if(not lines), found=found, details=listed(lines[1:]))


def _check_shapes(shapes: Shapes, tensors: Mapping[str, StoredTensor]) -> Check:
    lines = [
        f"{name} is {list(tensors[name].shape)}, not {list(shape)}"
        for name, shape in shapes.items()
        if name in tensors and tensors[name].shape != shape
    ]
    found = f"{len(lines)} wrong: {lines[0]}" if lines else "all as expected"
    return Check(group=GROUP, name="shapes", verdict=passed_if(not lines), found=found, details=listed(lines[1:]))


def _check_types(subject: Subject, tensors: Mapping[str, StoredTensor]) -> Check:
    """Check that a released size has bfloat16 tensors. Another model may have any floating-point types."""
    counts = Counter(_name(tensor.dtype) for tensor in tensors.values())
    found = ", ".join(f"{number_of(count, 'tensor')} {name}" for name, count in counts.most_common())
    is_released = subject.size not in (None, "nano")
    wrong = [
        f"{name} is {_name(tensor.dtype)}"
        for name, tensor in tensors.items()
        if not tensor.dtype.is_floating_point
        or (
            is_released
            and tensor.dtype != torch.bfloat16
            and not (name.endswith(BIAS) and tensor.dtype == torch.float32)
        )
    ]
    if wrong:
        found += f"; {wrong[0]}, expected {'bfloat16' if is_released else 'a floating type'}"
    return Check(group=GROUP, name="types", verdict=passed_if(not wrong), found=found, details=listed(wrong[1:]))


def _check_bytes(shapes: Shapes, tensors: Mapping[str, StoredTensor]) -> Check:
    expected = sum(prod(shape) for shape in shapes.values())
    held = sum(prod(tensor.shape) for tensor in tensors.values())
    total = sum(tensor.nbytes for tensor in tensors.values())
    found = f"{held:,} parameters in {total:,} bytes"
    if held != expected:
        found += f"; expected {expected:,} parameters"
    return Check(group=GROUP, name="size", verdict=passed_if(held == expected), found=found)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
