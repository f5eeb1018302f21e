"""ctypes counterparts of the structures in csrc/model.h and other headers: fields, order and sizes must be the same."""

from __future__ import annotations

import ctypes

from torch import Tensor

_POINTER = ctypes.c_void_p
_INT = ctypes.c_int64

BF16, INT8, INT4 = 0, 1, 2  # the kinds of a matrix
QUANTIZED = {"int8": INT8, "int4": INT4}  # by the names of vl2.quant.formats


class MatrixC(ctypes.Structure):
    """A weight [outputs, inputs]: the addresses of its numbers or codes, and of its scales if it is quantized."""

    _fields_ = [("kind", _INT), ("outputs", _INT), ("inputs", _INT), ("codes", _POINTER), ("scales", _POINTER)]


class StackC(ctypes.Structure):
    """Matrices of one shape, at fixed strides in bytes, or at the addresses in the array `each` if it is not null."""

    _fields_ = [("first", MatrixC), ("code_stride", _INT), ("scale_stride", _INT), ("each", _POINTER)]

    @classmethod
    def of(cls, kind: int, outputs: int, inputs: int, codes: Tensor, scales: Tensor | None = None) -> StackC:
        """Describe the matrices along the first dimension of `codes` and `scales`. The caller must keep the tensors."""
        held = [(None, 0) if t is None else (t.data_ptr(), t.stride(0) * t.element_size()) for t in (codes, scales)]
        (code_at, code_stride), (scale_at, scale_stride) = held
        return cls(MatrixC(kind, outputs, inputs, code_at, scale_at), code_stride, scale_stride)

    @classmethod
    def apart(cls, outputs: int, inputs: int, address_E: Tensor) -> StackC:
        """Describe bfloat16 matrices by their addresses, int64 [E].

        The structure keeps `address_E` in memory, but a copy of the structure does not.
        """
        stack = cls(MatrixC(BF16, outputs, inputs, int(address_E[0]), None), 0, 0, address_E.data_ptr())
        stack.address_E = address_E
        return stack


class LayerC(ctypes.Structure):
    _fields_ = [
        ("input_norm", _POINTER),
        ("post_norm", _POINTER),
        *((name, MatrixC) for name in ("query", "key", "value", "output")),
        ("latent_norm", _POINTER),
        *((name, MatrixC) for name in ("gate", "up", "down")),
        ("router", _POINTER),
        ("expert_bias", _POINTER),
        *((name, StackC) for name in ("expert_gate", "expert_up", "expert_down")),
    ]


class ModelC(ctypes.Structure):
    _fields_ = [
        *((name, _INT) for name in ("num_layers", "width", "heads", "kv_heads", "head_dim")),
        *((name, _INT) for name in ("rank", "nope_dim", "rope_dim", "value_dim")),
        *((name, _INT) for name in ("experts", "experts_per_token", "is_sigmoid", "is_normalized")),
        *((name, ctypes.c_double) for name in ("routed_scale", "norm_eps", "latent_eps")),
        ("layers", ctypes.POINTER(LayerC)),
        ("final_norm", _POINTER),
        ("head", MatrixC),
    ]


class StepC(ctypes.Structure):
    """A decoding step. `cache` is [layers, rows, 7]: for each layer and row the fields of CacheRow in csrc/model.h."""

    _fields_ = [
        ("rows", _INT),
        ("threads", _INT),
        ("inputs", _POINTER),
        ("lengths", ctypes.POINTER(_INT)),
        ("cache", ctypes.POINTER(_INT)),
        *((name, _POINTER) for name in ("cosines", "sines", "logits", "states")),
    ]


class PrefillChunkC(ctypes.Structure):
    """A chunk of a prompt (csrc/fused_prefill.h). `cache` is [layers, 7], with the numbers of StepC."""

    _fields_ = [
        *((name, _INT) for name in ("rows", "before", "threads")),
        ("cache", ctypes.POINTER(_INT)),
        *((name, _POINTER) for name in ("cosines", "sines", "x", "state")),
    ]


class NormC(ctypes.Structure):
    _fields_ = [("weight", _POINTER), ("bias", _POINTER)]


class BiasedMatrixC(ctypes.Structure):
    _fields_ = [("weight", MatrixC), ("bias", _POINTER)]


class EncoderBlockC(ctypes.Structure):
    """A block of a vision transformer (csrc/encode.h)."""

    _fields_ = [
        ("attention_norm", NormC),
        *((name, BiasedMatrixC) for name in ("qkv", "projection")),
        ("mlp_norm", NormC),
        *((name, BiasedMatrixC) for name in ("fc1", "fc2")),
    ]


class EncoderC(ctypes.Structure):
    _fields_ = [
        *((name, _INT) for name in ("num_blocks", "width", "heads", "activation")),
        ("eps", ctypes.c_double),
        ("blocks", ctypes.POINTER(EncoderBlockC)),
    ]


class SamBlockC(ctypes.Structure):
    """A block of SAM (csrc/sam.h). A `window` of 0 is the whole view."""

    _fields_ = [("block", EncoderBlockC), ("window", _INT)]


class SamC(ctypes.Structure):
    _fields_ = [
        *((name, _INT) for name in ("num_blocks", "width", "heads", "patch_px")),
        ("eps", ctypes.c_double),
        ("blocks", ctypes.POINTER(SamBlockC)),
        *((name, BiasedMatrixC) for name in ("patch", "narrow", "neck")),
        *((name, NormC) for name in ("narrow_norm", "neck_norm")),
        *((name, BiasedMatrixC) for name in ("halve", "halve_again")),
    ]


class SamViewsC(ctypes.Structure):
    """Views for SAM. `tables` are the addresses of each block's vectors of distances in rows and in columns."""

    _fields_ = [
        ("pixels", _POINTER),
        *((name, _INT) for name in ("views", "side_px")),
        ("positions", _POINTER),
        ("tables", ctypes.POINTER(_POINTER)),
        ("out", _POINTER),
    ]
