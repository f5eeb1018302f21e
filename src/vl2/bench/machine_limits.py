"""The machine's own limits: how fast it reads memory, and how fast it multiplies matrices of the model's shapes."""

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
from vl2.timing import best_seconds, wait_for

READ_BYTES = 512 << 20  # far above the caches of a processor
NEW_BYTES = 256 << 20  # little enough that hardly any of what is written here serves a model that is loaded next
PREFILL_ROWS = 1000


@dataclass(frozen=True, kw_only=True)
class Product:
    """A matrix product [rows, inner] x [inner, columns] that the model does."""

    what: str
    rows: int
    inner: int
    columns: int


@dataclass(frozen=True, kw_only=True)
class MachineLimits:
    """The best rates that were seen."""

    device: str
    threads: int
    read_bytes_per_s: float
    new_bytes_per_s: float  # of memory that the process has not had before, written for the first time
    products: dict[str, dict[str, float]]  # type -> what is multiplied -> operations per second

    def operations_per_s(self, compute: str) -> float:
        """Return the rate of the fastest product in a type; that of float32 where the type was not measured."""
        return max(self.products.get(compute, self.products["float32"]).values())

    def best_with(self, other: MachineLimits) -> MachineLimits:
        """Join two measurements: what was reached once is possible."""
        products = {
            kind: {what: max(rate, other.products[kind][what]) for what, rate in rates.items()}
            for kind, rates in self.products.items()
        }
        read = max(self.read_bytes_per_s, other.read_bytes_per_s)
        return dataclasses.replace(self, read_bytes_per_s=read, products=products)

    def to_dict(self) -> dict[str, Any]:
        return {
            "device": self.device,
            "threads": self.threads,
            "read_gb_per_s": self.read_bytes_per_s / 1e9,
            "new_gb_per_s": self.new_bytes_per_s / 1e9,
            "products_gop_per_s": {
                kind: {what: rate / 1e9 for what, rate in rates.items()} for kind, rates in self.products.items()
            },
        }


def model_products(config: ModelConfig) -> list[Product]:
    """Return the products that make up most of an encoder's and a prefill's work."""
    vision, language = config.siglip, config.language_config
    patches, width = vision.patches_per_side**2, language.hidden_size
    products = [
        Product(what="encoder MLP", rows=patches, inner=vision.width, columns=vision.mlp_width),
        Product(what="encoder attention", rows=patches, inner=vision.width, columns=3 * vision.width),
        Product(what="language attention", rows=PREFILL_ROWS, inner=width, columns=width),
    ]
    if language.n_routed_experts and language.num_experts_per_tok:
        rows = -(-PREFILL_ROWS * language.num_experts_per_tok // language.n_routed_experts)
        hidden = language.moe_intermediate_size
        products.append(Product(what="one expert", rows=rows, inner=width, columns=2 * hidden))
        if language.n_shared_experts:
            columns = language.n_shared_experts * hidden
            products.append(Product(what="shared experts", rows=PREFILL_ROWS, inner=width, columns=columns))
    return products


def measure_machine(
    config: ModelConfig, device: torch.device, *, repeats: int = 5, new_bytes_per_s: float | None = None
) -> MachineLimits:
    """Measure for some seconds. Memory is new only once: its rate is given where it was measured before."""
    new = _new_rate(device) if new_bytes_per_s is None else new_bytes_per_s  # first: what the others let go is not new
    products = {}
    for kind, multiply in _kinds(device).items():
        rates = {}
        for product in model_products(config):
            rate = _product_rate(product, multiply, device, repeats)
            if rate is not None:
                rates[product.what] = rate
        if rates:
            products[kind] = rates
    return MachineLimits(
        device=_device_name(device),
        threads=torch.get_num_threads(),
        read_bytes_per_s=_read_rate(device, repeats),
        new_bytes_per_s=new,
        products=products,
    )


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _read_rate(device: torch.device, repeats: int) -> float:
    """Return the bytes per second that all threads together read."""
    # Of the CPU's reductions the sum of float64 is nearest to the memory's own speed; not every device has that type.
    dtype = torch.float64 if device.type == "cpu" else torch.float32
    values = torch.ones(READ_BYTES // dtype.itemsize, dtype=dtype, device=device)
    return READ_BYTES / best_seconds(values.sum, device, repeats)


def _new_rate(device: torch.device) -> float:
    """Return the bytes per second of memory that is written for the first time, as a model's weights are.

    The system clears it first, and that of a virtual machine may have to ask for it at its host.
    """
    values = torch.empty(NEW_BYTES, dtype=torch.uint8, device=device)
    prefer_huge_pages(values)
    wait_for(device)
    start = time.perf_counter()
    values.fill_(1)
    wait_for(device)
    return NEW_BYTES / (time.perf_counter() - start)


Multiply = Callable[[Product, torch.device], Callable[[], object]]


def _kinds(device: torch.device) -> dict[str, Multiply]:
    kinds: dict[str, Multiply] = {
        "float32": lambda p, d: _linear(p, d, torch.float32),
        "bfloat16": lambda p, d: _linear(p, d, torch.bfloat16),
    }
    if device.type != "cpu":
        kinds["float16"] = lambda p, d: _linear(p, d, torch.float16)
    kinds["int8"] = _int8_product
    return kinds


def _linear(product: Product, device: torch.device, dtype: torch.dtype) -> Callable[[], object]:
    x = torch.randn(product.rows, product.inner, device=device).to(dtype)
    weight = torch.randn(product.columns, product.inner, device=device).to(dtype)
    return lambda: F.linear(x, weight)


def _int8_product(product: Product, device: torch.device) -> Callable[[], object]:
    x = torch.randint(-127, 127, (product.rows, product.inner), device=device, dtype=torch.int8)
    weight = torch.randint(-127, 127, (product.columns, product.inner), device=device, dtype=torch.int8)
    return lambda: torch._int_mm(x, weight.mT)


def _product_rate(product: Product, make: Multiply, device: torch.device, repeats: int) -> float | None:
    """Return the operations per second, or None where the device does not have this product."""
    try:
        seconds = best_seconds(make(product, device), device, repeats)
    except (RuntimeError, NotImplementedError):
        return None
    return 2.0 * product.rows * product.inner * product.columns / seconds
