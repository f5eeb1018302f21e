"""Measure the machine's limits: memory bandwidth, and the rate of matrix products of the model's shapes."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from vl2.checkpoint.pages import prefer_huge_pages
from vl2.config import ModelConfig
from vl2.deep_encoder_config import DeepEncoderConfig
from vl2.timing import best_seconds, wait_for

READ_BYTES = 512 << 20  # much larger than a processor's caches
FIRST_WRITE_BYTES = 256 << 20  # small, so that a model loaded afterwards gets few of these already mapped pages
PREFILL_ROWS = 1000  # tokens of a typical prompt


@dataclass(frozen=True, kw_only=True)
class MatmulShape:
    """A matrix product [rows, inner] x [inner, columns] of the model."""

    name: str
    rows: int
    inner: int
    columns: int


@dataclass(frozen=True, kw_only=True)
class MachineLimits:
    """The best measured rates of a device."""

    device: str
    threads: int
    read_bytes_per_s: float
    first_write_bytes_per_s: float  # first write to memory that is new to the process
    products: dict[str, dict[str, float]]  # type -> name of the matrix product -> operations per second

    def operations_per_s(self, compute: str) -> float:
        """Return the rate of the fastest matrix product in a type, or in float32 if the type was not measured."""
        return max(self.products.get(compute, self.products["float32"]).values())

    def best_with(self, other: MachineLimits) -> MachineLimits:
        """Combine two measurements, with the higher of each pair of rates."""
        products = {
            kind: {name: max(rate, other.products[kind][name]) for name, rate in rates.items()}
            for kind, rates in self.products.items()
        }
        read = max(self.read_bytes_per_s, other.read_bytes_per_s)
        return dataclasses.replace(self, read_bytes_per_s=read, products=products)

    def to_dict(self) -> dict[str, Any]:
        return {
            "device": self.device,
            "threads": self.threads,
            "read_gb_per_s": self.read_bytes_per_s / 1e9,
            "new_gb_per_s": self.first_write_bytes_per_s / 1e9,
            "products_gop_per_s": {
                kind: {name: rate / 1e9 for name, rate in rates.items()} for kind, rates in self.products.items()
            },
        }


def model_matmuls(config: ModelConfig) -> list[MatmulShape]:
    """Return the matrix products that take most of the time of image encoding and prefill."""
    language = config.language_config
    width = language.hidden_size
    products = [
        *_encoder_matmuls(config),
        MatmulShape(name="language attention", rows=PREFILL_ROWS, inner=width, columns=width),
    ]
    if language.n_routed_experts and language.num_experts_per_tok:
        rows = -(-PREFILL_ROWS * language.num_experts_per_tok // language.n_routed_experts)
        hidden = language.moe_intermediate_size
        products.append(MatmulShape(name="one expert", rows=rows, inner=width, columns=2 * hidden))
        if language.n_shared_experts:
            columns = language.n_shared_experts * hidden
            products.append(MatmulShape(name="shared experts", rows=PREFILL_ROWS, inner=width, columns=columns))
    return products


def _encoder_matmuls(config: ModelConfig) -> list[MatmulShape]:
    vision = config.vision_config
    if isinstance(vision, DeepEncoderConfig):  # SAM has most of the work
        patches, inner = vision.num_patches(vision.image_size), vision.sam.width
        mlp_width = inner * vision.sam.mlp_ratio
    else:
        patches, inner, mlp_width = vision.patches_per_side**2, vision.width, vision.mlp_width
    return [
        MatmulShape(name="encoder MLP", rows=patches, inner=inner, columns=mlp_width),
        MatmulShape(name="encoder attention", rows=patches, inner=inner, columns=3 * inner),
    ]


def measure_machine(
    config: ModelConfig, device: torch.device, *, repeats: int = 5, first_write_bytes_per_s: float | None = None
) -> MachineLimits:
    """Measure the limits, which takes a few seconds.

    Pass `first_write_bytes_per_s` of an earlier call in the same process: later on, its memory is no longer new.
    """
    # This comes first, because the other measurements free memory that would be used again here.
    first_write = _first_write_rate(device) if first_write_bytes_per_s is None else first_write_bytes_per_s
    products = {}
    for kind, multiply in _matmul_types(device).items():
        rates = {}
        for shape in model_matmuls(config):
            rate = _matmul_rate(shape, multiply, device, repeats)
            if rate is not None:
                rates[shape.name] = rate
        if rates:
            products[kind] = rates
    return MachineLimits(
        device=_device_name(device),
        threads=torch.get_num_threads(),
        read_bytes_per_s=_read_rate(device, repeats),
        first_write_bytes_per_s=first_write,
        products=products,
    )


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _read_rate(device: torch.device, repeats: int) -> float:
    """Return the bytes per second that all threads read together."""
    # On a CPU the sum in float64 is the reduction that comes closest to memory bandwidth. Not every device has float64.
    dtype = torch.float64 if device.type == "cpu" else torch.float32
    values = torch.ones(READ_BYTES // dtype.itemsize, dtype=dtype, device=device)
    return READ_BYTES / best_seconds(values.sum, device, repeats)


def _first_write_rate(device: torch.device) -> float:
    """Return the bytes per second of the first write to new memory, as happens when a model is loaded.

    It is slower than a later write, because the system clears the pages first, and in a virtual machine it may have to
    request them from the host.
    """
    values = torch.empty(FIRST_WRITE_BYTES, dtype=torch.uint8, device=device)
    prefer_huge_pages(values)
    wait_for(device)
    start = time.perf_counter()
    values.fill_(1)
    wait_for(device)
    return FIRST_WRITE_BYTES / (time.perf_counter() - start)


MakeMatmul = Callable[[MatmulShape, torch.device], Callable[[], object]]


def _matmul_types(device: torch.device) -> dict[str, MakeMatmul]:
    kinds: dict[str, MakeMatmul] = {
        "float32": lambda p, d: _linear(p, d, torch.float32),
        "bfloat16": lambda p, d: _linear(p, d, torch.bfloat16),
    }
    if device.type != "cpu":
        kinds["float16"] = lambda p, d: _linear(p, d, torch.float16)
    kinds["int8"] = _int8_matmul
    return kinds


def _linear(shape: MatmulShape, device: torch.device, dtype: torch.dtype) -> Callable[[], object]:
    x = torch.randn(shape.rows, shape.inner, device=device).to(dtype)
    weight = torch.randn(shape.columns, shape.inner, device=device).to(dtype)
    return lambda: F.linear(x, weight)


def _int8_matmul(shape: MatmulShape, device: torch.device) -> Callable[[], object]:
    x = torch.randint(-127, 127, (shape.rows, shape.inner), device=device, dtype=torch.int8)
    weight = torch.randint(-127, 127, (shape.columns, shape.inner), device=device, dtype=torch.int8)
    return lambda: torch._int_mm(x, weight.mT)


def _matmul_rate(shape: MatmulShape, make: MakeMatmul, device: torch.device, repeats: int) -> float | None:
    """Return the operations per second, or None if the device does not support this matrix product."""
    try:
        seconds = best_seconds(make(shape, device), device, repeats)
    except (RuntimeError, NotImplementedError):
        return None
    return 2.0 * shape.rows * shape.inner * shape.columns / seconds
