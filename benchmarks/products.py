"""How fast products with a few rows read their weights: the kernels beside PyTorch's own, as shares of the read limit.

    python benchmarks/products.py                      # all threads, wall time; run it on a quiet machine
    OMP_NUM_THREADS=1 python benchmarks/products.py    # one thread, its own time: fair on a busy machine too
    python benchmarks/products.py --kernels            # the kernels alone: PyTorch's own take minutes with AVX2 alone

Every weight is one of many of its shape, 256 MB together in large pages, so that none stays in a cache. The limit is a
plain sum over the same memory in the same run. About a minute. Then products with many rows, as a prefill and the
encoder make them, in billions of operations a second, beside a large float32 product.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F
from torch_products import Layout, copies, layouts

from vl2.kernels import Library, load_kernels
from vl2.kernels.matmul import linear_in_float32, matmul
from vl2.kernels.structures import BF16, INT4, INT8, MatrixC
from vl2.quant.formats import KINDS, Kind, Quantized, quantize, weight_bytes
from vl2.quant.quantized_matmul import linear

BYTES = 256 << 20
SHAPES = {"a quarter of the head": (32320, 1280), "expert, gate": (896, 1280), "expert, down": (1280, 896)}
ROWS = (1, 2, 4, 8, 16)
MANY_ROWS = (16, 64, 256, 1024)
Clock = Callable[[], float]


def best_rate(run: Callable[[], object], nbytes: int, clock: Clock, repeats: int = 5) -> float:
    """Return GB/s of the fastest run."""
    times = []
    for _ in range(repeats):
        start = clock()
        run()
        times.append(clock() - start)
    return nbytes / min(times) / 1e9


def kernel_rate(kernels: Library, shape: tuple[int, int], kind: Kind | None, rows: int, clock: Clock) -> float:
    N, K = shape
    weight = torch.randn(N, K).to(torch.bfloat16)
    each = 2 * N * K if kind is None else weight_bytes(kind, shape)
    count = max(1, BYTES // each)
    held = [weight] if kind is None else [(q := quantize(weight, kind)).codes, q.scales]
    stacks = [copies(tensor, count) for tensor in held]
    number = BF16 if kind is None else INT8 if kind == "int8" else INT4
    matrices = [
        MatrixC(number, N, K, stacks[0][i].data_ptr(), stacks[-1][i].data_ptr() if kind else None) for i in range(count)
    ]
    x = torch.randn(rows, K).to(torch.bfloat16)

    def run() -> None:
        for matrix in matrices:
            matmul(kernels, matrix, x)

    return best_rate(run, each * count, clock)


def torch_rate(layout: Layout, shape: tuple[int, int], rows: int, clock: Clock) -> float:
    N, K = shape
    weight, x = torch.randn(N, K).to(torch.bfloat16), torch.randn(rows, K).to(torch.bfloat16)
    _, each = layout(weight, rows, 1)
    count = max(1, BYTES // each)
    products, _ = layout(weight, rows, count)

    def run() -> None:
        for product in products:
            product(x)

    return best_rate(run, each * count, clock)


def many_rows(shape: tuple[int, int], clock: Clock) -> dict[str, list[float]]:
    """Return the billions of operations a second of each way, for each of MANY_ROWS."""
    N, K = shape
    weight = torch.randn(N, K).to(torch.bfloat16)
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "PyTorch linear, bfloat16": lambda x: F.linear(x, weight),
        "float32 panels of bfloat16": lambda x: linear_in_float32(x, weight),
    }
    for kind in KINDS:
        ways[f"{kind}, as chosen for this processor"] = partial(_multiply, quantize(weight, kind), N, K)
    inputs = [torch.randn(rows, K).to(torch.bfloat16) for rows in MANY_ROWS]
    return {
        name: [2 * best_rate(partial(way, x), len(x) * N * K, clock, 3) for x in inputs] for name, way in ways.items()
    }


def _multiply(quantized: Quantized, N: int, K: int, x: Tensor) -> Tensor:
    return linear(x, quantized, N, K)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernels", action="store_true", help="measure the kernels alone, with few rows")
    args = parser.parse_args()
    kernels = load_kernels()
    if kernels is None:
        raise SystemExit("there are no kernels here: install a C++ compiler, and do not set VL2_KERNELS=off")
    threads = torch.get_num_threads()
    clock = time.thread_time if threads == 1 else time.perf_counter
    memory = copies(torch.ones(BYTES // 8, dtype=torch.int64), 1)
    limit = best_rate(memory.sum, BYTES, clock)
    print(f"{threads} threads, {kernels.level} kernels; reading alone: {limit:.1f} GB/s\n")
    print(f"GB/s of weights {'':24} " + " ".join(f"{rows:>3} rows" for rows in ROWS))
    for name, shape in SHAPES.items():
        figures: dict[str, list[float]] = {}
        if not args.kernels:
            for way, layout in layouts().items():
                figures[way] = [torch_rate(layout, shape, rows, clock) for rows in ROWS]
        for kind in (None, "int8", "int4"):
            figures[f"kernels, {kind or 'bfloat16'}"] = [
                kernel_rate(kernels, shape, kind, rows, clock) for rows in ROWS
            ]
        print(f"{name}, {shape[0]} x {shape[1]}")
        for way, rates in figures.items():
            print(f"  {way:38} " + " ".join(f"{rate:8.1f}" for rate in rates))
    if args.kernels:
        return
    square = torch.randn(2048, 2048)
    limit = best_rate(lambda: square @ square, 2 * 2048**3, clock)
    shape = SHAPES["expert, gate"]
    print(f"\nGFLOP/s, {shape[0]} x {shape[1]}; a large float32 product: {limit:.0f}")
    print(f"{'':40} " + " ".join(f"{rows:>3} rows" for rows in MANY_ROWS))
    for way, rates in many_rows(shape, clock).items():
        print(f"  {way:38} " + " ".join(f"{rate:8.1f}" for rate in rates))


if __name__ == "__main__":
    main()
