"""llama.cpp's text model: for `vl2 bench --against "VENV/bin/python benchmarks/peers/llama_text.py [bf16|Q8_0|Q4_0]
[--no-flash-attention]"`. Its default chooses flash attention, which is slower on some processors.

Its environment: `pip install gguf`, and `CMAKE_ARGS=-DGGML_NATIVE=ON pip install --no-cache-dir --no-binary
llama-cpp-python llama-cpp-python`, which compiles llama.cpp for this processor; a wheel of another build may be half as
fast, and the name that the adapter gives itself says what the build lacks. llama.cpp does not know DeepSeek-VL2, but
the language model of the tiny size is a DeepSeek-MoE, which it does: multi-head attention, softmax routing, shared
experts, a dense first layer. Its weights are written into a temporary GGUF file first, 5.9 GB in bfloat16; images are
out of its reach. Writing is not part of the time to load, mapping the file is.
"""

from __future__ import annotations

import json
import multiprocessing
import struct
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "src"))

import numpy as np

from vl2.bench.protocol import Answer, Task, Unsupported, random_ids, serve, timed

KINDS = ("bf16", "Q8_0", "Q4_0")
# The names of one layer's matrices: ours, theirs.
DENSE = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    **{f"self_attn.{one}_proj": f"attn_{other}" for one, other in zip("qkvo", ("q", "k", "v", "output"), strict=True)},
    **{f"mlp.{name}_proj": f"ffn_{name}" for name in ("gate", "up", "down")},
    "mlp.gate": "ffn_gate_inp",
    **{f"mlp.shared_experts.{name}_proj": f"ffn_{name}_shexp" for name in ("gate", "up", "down")},
}
WHOLE = {
    "language.model.embed_tokens": "token_embd",
    "language.model.norm": "output_norm",
    "language.lm_head": "output",
}
# Instruction sets that change its speed: llama.cpp's name, and the processor's.
SETS = {
    "AVX2": "avx2",
    "FMA": "fma",
    "AVX512": "avx512f",
    "AVX512_VNNI": "avx512_vnni",
    "AVX512_BF16": "avx512_bf16",
    "AMX_INT8": "amx_int8",
}
CONTEXT = 2560  # of all rows together: 16 short ones, or one long one


def stored(folder: Path) -> dict[str, tuple[Path, int, list[int]]]:
    """Return where each tensor of a checkpoint lies: file, first byte, shape."""
    places = {}
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            for name, entry in json.loads(file.read(length)).items():
                if name != "__metadata__":
                    if entry["dtype"] != "BF16":
                        raise Unsupported(f"{name} is {entry['dtype']}: this adapter takes bfloat16 checkpoints")
                    places[name] = (path, 8 + length + entry["data_offsets"][0], entry["shape"])
    return places


class Tensors:
    """The language model's tensors under llama.cpp's names, each read when it is asked for."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        self._places, self._experts = stored(folder), config["n_routed_experts"]
        self.names: dict[str, list[str]] = {f"{theirs}.weight": [f"{ours}.weight"] for ours, theirs in WHOLE.items()}
        for layer in range(config["num_hidden_layers"]):
            ours, theirs = f"language.model.layers.{layer}.", f"blk.{layer}."
            for one, other in DENSE.items():
                if f"{ours}{one}.weight" in self._places:
                    self.names[f"{theirs}{other}.weight"] = [f"{ours}{one}.weight"]
            for name in ("gate", "up", "down"):
                experts = [f"{ours}mlp.experts.{e}.{name}_proj.weight" for e in range(self._experts)]
                if experts[0] in self._places:
                    self.names[f"{theirs}ffn_{name}_exps.weight"] = experts

    def shape(self, name: str) -> list[int]:
        (first, *others) = self.names[name]
        return [1 + len(others), *self._places[first][2]] if others else self._places[first][2]

    def is_float32(self, name: str) -> bool:
        return len(self.shape(name)) == 1 or "ffn_gate_inp" in name

    def read(self, name: str) -> Iterator[np.ndarray]:
        for ours in self.names[name]:
            path, offset, shape = self._places[ours]
            words = np.memmap(path, np.uint16, "r", offset, tuple(shape))
            yield (words.astype(np.uint32) << 16).view(np.float32) if self.is_float32(name) else words


def write_gguf(folder: Path, to: Path, architecture: str = "deepseek") -> None:
    """Write the language model of a checkpoint as a GGUF file, tensor by tensor.

    A `dots1` model has norms of queries and keys too; they are written as ones.
    """
    import gguf

    defaults = {"vocab_size": 102400, "num_hidden_layers": 30, "n_shared_experts": 2, "use_mla": True}
    config = {**defaults, **json.loads((folder / "config.json").read_text(encoding="utf-8"))["language_config"]}
    if config["use_mla"] or config.get("scoring_func", "softmax") != "softmax":
        raise Unsupported("this adapter writes the tiny size: multi-head attention and softmax routing")
    width, heads = config["hidden_size"], config["num_attention_heads"]
    writer = gguf.GGUFWriter(to, architecture)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(4096)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_layer_norm_rms_eps(config.get("rms_norm_eps", 1e-6))
    writer.add_rope_freq_base(config.get("rope_theta", 10000.0))
    writer.add_rope_dimension_count(width // heads)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_leading_dense_block_count(config.get("first_k_dense_replace", 1))
    writer.add_expert_count(config["n_routed_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_expert_shared_count(config["n_shared_experts"])
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_expert_weights_scale(config.get("routed_scaling_factor", 1.0))
    writer.add_tokenizer_model("no_vocab")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    if architecture == "dots1":
        writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SOFTMAX)
    tensors = Tensors(folder, config)
    ones = np.ones(width // heads, np.float32)
    norms = [f"blk.{layer}.attn_{one}_norm.weight" for layer in range(config["num_hidden_layers"]) for one in "qk"]
    norms = norms if architecture == "dots1" else []
    for name in norms:
        writer.add_tensor_info(name, ones.shape, ones.dtype, ones.nbytes)
    for name in tensors.names:
        shape = tensors.shape(name)
        if tensors.is_float32(name):
            writer.add_tensor_info(name, shape, np.dtype(np.float32), 4 * int(np.prod(shape)))
        else:
            # The library counts the bytes of the last axis for types that numpy does not have.
            as_bytes = [*shape[:-1], 2 * shape[-1]]
            bf16 = gguf.GGMLQuantizationType.BF16
            writer.add_tensor_info(name, as_bytes, np.dtype(np.uint8), int(np.prod(as_bytes)), raw_dtype=bf16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _ in norms:
        writer.write_tensor_data(ones)
    for name in tensors.names:
        parts = list(tensors.read(name))
        writer.write_tensor_data(np.stack(parts) if len(parts) > 1 else np.ascontiguousarray(parts[0]))
    writer.close()


def cpu_flags() -> set[str]:
    """Return the instruction sets of this processor, as Linux names them; none elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    return set(next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), []))


def build_of(system_info: str, flags: set[str]) -> str:
    """Return whether a build has all of the processor's instruction sets that count here, by what it says of itself."""
    enabled = {
        part.split("=")[0].split(":")[-1].strip() for part in system_info.split("|") if part.strip().endswith("1")
    }
    missing = [name for name, flag in SETS.items() if flag in flags and name not in enabled]
    if missing:
        return f"build without {', '.join(missing)}"
    return "native build" if flags & set(SETS.values()) else "build for an unknown processor"


def quantize(plain: Path, kind: str, threads: int) -> Path:
    """Write a GGUF file with all matrices of one kind beside the file in bfloat16, and return its path."""
    path = plain.with_name(f"{kind}.gguf")
    # In a process of its own, so that the memory for it does not count as the memory of the model.
    work = multiprocessing.get_context("spawn").Process(target=_quantize, args=(plain, path, kind, threads))
    work.start()
    work.join()
    if work.exitcode:
        path.unlink(missing_ok=True)
        raise RuntimeError(f"llama.cpp could not quantize to {kind}")
    return path


def _quantize(plain: Path, path: Path, kind: str, threads: int) -> None:
    import llama_cpp as lib

    params = lib.llama_model_quantize_default_params()
    params.ftype = getattr(lib, f"LLAMA_FTYPE_MOSTLY_{kind}")
    params.nthread = threads
    params.pure = True
    sys.exit(lib.llama_model_quantize(str(plain).encode(), str(path).encode(), params))


class Peer:
    """llama.cpp through the low-level functions of its Python binding."""

    def __init__(self, kind: str, *, flash_attention: bool) -> None:
        if kind not in KINDS:
            sys.exit(f"the kind of weights must be one of {', '.join(KINDS)}, got {kind}")
        self._kind, self._flash_attention = kind, flash_attention
        self._folder = tempfile.TemporaryDirectory()

    def load(self, task: Task) -> Answer:
        plain = Path(self._folder.name) / "bf16.gguf"
        write_gguf(Path(task["model"]), plain)
        threads = task["threads"] or 2
        if self._kind == "bf16":
            return self._load(plain, threads)
        path = quantize(plain, self._kind, threads)
        plain.unlink()
        return self._load(path, threads)

    def _load(self, path: Path, threads: int) -> Answer:
        import llama_cpp as lib

        self.lib = lib
        lib.llama_backend_init()
        loaded = timed(lambda: self._open(path, threads))
        build = build_of(lib.llama_print_system_info().decode(), cpu_flags())
        attention = "" if self._flash_attention else ", no flash attention"
        return {
            **loaded,
            "name": f"llama.cpp {self._kind}, {build}{attention}",
            "versions": {"llama-cpp-python": lib.__version__},
        }

    def _open(self, path: Path, threads: int) -> None:
        lib = self.lib
        self.model = lib.llama_model_load_from_file(str(path).encode(), lib.llama_model_default_params())
        if not self.model:
            raise RuntimeError("llama.cpp could not load the file that was written")
        params = lib.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = CONTEXT, CONTEXT, 1024, 16
        params.kv_unified = True
        if not self._flash_attention:
            params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.n_threads = params.n_threads_batch = threads
        self.context = lib.llama_init_from_model(self.model, params)
        if not self.context:
            raise RuntimeError("llama.cpp could not make a context")
        self.vocabulary = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self.model))

    def prefill(self, task: Task) -> Answer:
        self._forget()
        ids = random_ids(task["tokens"], self.vocabulary, task["seed"])
        return timed(lambda: self._run([(token, place, 0) for place, token in enumerate(ids)]))

    def decode(self, task: Task) -> Answer:
        """Every row is read with a prompt of its own, then all of them step together."""
        batch, context, steps = task["batch"], task["context"], task["steps"]
        self._forget()
        for row in range(batch):
            ids = random_ids(context, self.vocabulary, 100 * task["seed"] + row)
            self._run([(token, place, row) for place, token in enumerate(ids)])
        ids = random_ids(batch * steps, self.vocabulary, task["seed"] + 1)

        def run() -> None:
            for step in range(steps):
                self._run([(ids[step * batch + row], context + step, row) for row in range(batch)], all_logits=True)

        return timed(run)

    def _forget(self) -> None:
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), True)

    def _run(self, tokens: list[tuple[int, int, int]], *, all_logits: bool = False) -> None:
        """Run tokens (id, place, row) in one batch and wait for the logits of the last, or of all."""
        lib = self.lib
        batch = lib.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for i, (token, place, row) in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, place, 1
            batch.seq_id[i][0] = row
            batch.logits[i] = all_logits or i == len(tokens) - 1
        code = lib.llama_decode(self.context, batch)
        lib.llama_synchronize(self.context)
        lib.llama_batch_free(batch)
        if code:
            raise RuntimeError(f"llama_decode returned {code}")


if __name__ == "__main__":
    kinds = [argument for argument in sys.argv[1:] if argument != "--no-flash-attention"]
    peer = Peer(kinds[0] if kinds else "bf16", flash_attention=len(kinds) == len(sys.argv) - 1)
    serve({"load": peer.load, "prefill": peer.prefill, "decode": peer.decode})
