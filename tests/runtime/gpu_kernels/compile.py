"""Compile the kernels for a compute capability, such as 90, and print what was built as JSON."""

from __future__ import annotations

import json
import sys
from typing import Any

from triton import compile as compile_kernel
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from vl2.runtime.gpu_kernels.grouped_matmul import grouped_matmul_kernel
from vl2.runtime.gpu_kernels.routing import route_kernel

CODES = {"int4": "*i32", "int8": "*i8", "plain": "*bf16"}
SCALES = {"int4": "*fp16", "int8": "*fp32", "plain": "*bf16"}
SIZES = ("N", "K", "codes_of_expert", "scales_of_expert")


def build(kernel: Any, signature: dict[str, str], constants: dict[str, Any], capability: int, warps: int) -> Any:
    names = list(kernel.arg_names)
    # Sizes and addresses are multiples of 16, as in the released models.
    aligned = [name for name, kind in signature.items() if kind.startswith("*") or name in SIZES]
    source = ASTSource(
        kernel,
        {**signature, **dict.fromkeys(constants, "constexpr")},
        constexprs=constants,
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    options = {"num_warps": warps, "num_stages": 4, "enable_fp_fusion": True}
    return compile_kernel(source, target=GPUTarget("cuda", capability, 32), options=options)


def matmul(kind: str, rows: int, *, grouped: bool, capability: int) -> Any:
    signature = {
        "x_ptr": "*bf16",
        "codes_ptr": CODES[kind],
        "scales_ptr": SCALES[kind],
        "bias_ptr": "*bf16",
        "out_ptr": "*bf16",
        "ends_ptr": "*i64" if grouped else "*bf16",
        "num_rows": "i32",
        **dict.fromkeys(SIZES, "i32"),
    }
    constants = {
        "KIND": kind,
        "IS_GROUPED": grouped,
        "HAS_BIAS": not grouped,
        "BLOCK_M": rows,
        "BLOCK_N": 64 if grouped else 32,
        "BLOCK_K": 32 if kind == "int4" else 64,
    }
    return build(grouped_matmul_kernel, signature, constants, capability, 4)


def route(*, sigmoid: bool, capability: int) -> Any:
    names = ("logits_ptr", "bias_ptr", "scores_ptr", "weights_ptr", "experts_ptr")
    signature = {**dict.fromkeys(names, "*fp32"), "experts_ptr": "*i64", "E": "i32", "scale": "fp32"}
    constants = {
        "K": 6,
        "BLOCK_E": 128,
        "BLOCK_K": 8,
        "HAS_BIAS": sigmoid,
        "IS_SIGMOID": sigmoid,
        "IS_NORMALIZED": sigmoid,
    }
    return build(route_kernel, signature, constants, capability, 1)


def main() -> None:
    capability = int(sys.argv[1])
    built = {
        "matmul int4 layer": matmul("int4", 16, grouped=False, capability=capability),
        "matmul int4 experts": matmul("int4", 32, grouped=True, capability=capability),
        "matmul int8 experts": matmul("int8", 32, grouped=True, capability=capability),
        "matmul plain experts": matmul("plain", 16, grouped=True, capability=capability),
        "route softmax": route(sigmoid=False, capability=capability),
        "route sigmoid": route(sigmoid=True, capability=capability),
    }
    about = {}
    for name, kernel in built.items():
        ptx = kernel.asm["ptx"]
        about[name] = {
            "code_bytes": len(kernel.asm["cubin"]),
            "num_products": ptx.count("mma.sync"),
            "num_async_copies": ptx.count("cp.async.c"),
            "spills": ".local" in ptx,
        }
    print(json.dumps(about))


if __name__ == "__main__":
    main()
