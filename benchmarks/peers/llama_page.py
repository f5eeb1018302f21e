"""llama.cpp's DeepSeek-OCR: for `vl2 bench --against "VENV/bin/python benchmarks/peers/llama_page.py FILES [KIND]"`.

Its environment is that of `llama_text.py`, and `pip install pillow`. FILES is a folder with `bf16.gguf`, the language
model, and `mmproj.gguf`, the encoder of images. llama.cpp's own converter writes them with the extra `hf` of vl2, in a
minute and with 6.7 GB of disk:

    python benchmarks/peers/llama_page.py convert LLAMA_CPP CHECKPOINT FILES

LLAMA_CPP is its source, which is `vendor/llama.cpp` in the source of llama-cpp-python. KIND is that of the language
model's matrices, one of bf16, Q8_0 and Q4_0; a file of another kind is written from `bf16.gguf` before the first use.

llama.cpp cuts a picture of more than 640 px into crops and adds a view of 1,024 px. Mode `base` is this view alone, so
the adapter leaves out the crops. It cannot keep llama.cpp from making them, which takes 0.03 s of a page.

The encoder's matrices are in bfloat16, because that was the fastest on a Zen 4: it took 0.81 of the time of float16 and
0.90 of that of Q8_0.
"""

from __future__ import annotations

import ctypes
import io
import json
import runpy
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "src"))
sys.path.insert(0, str(Path(__file__).parent))

import llama_text
import numpy as np

from vl2.bench.protocol import (
    PAGE_PROMPT,
    QUESTIONS,
    Answer,
    Task,
    check_page_tokens,
    make_image,
    page_answer,
    page_image,
    serve,
    timed,
)

SIDE_PX = 1024  # of a page in mode `base`
BOS = "<｜begin▁of▁sentence｜>"


def without_crops(are_images: Sequence[bool]) -> list[int]:
    """Return the places of a prompt's chunks in mode `base`: of the images the last alone, which is the whole view."""
    view = max(place for place, is_image in enumerate(are_images) if is_image)
    return [place for place, is_image in enumerate(are_images) if not is_image or place == view]


def convert(llama_cpp: Path, checkpoint: Path, to: Path) -> None:
    """Write a checkpoint's encoder and language model into a folder, with llama.cpp's converter."""
    from vllm_cpu import beside

    sys.path[:0] = [str(llama_cpp), str(llama_cpp / "gguf-py")]
    from conversion.base import TextModel

    known = TextModel.get_vocab_base_pre

    def splitting(self: Any, tokenizer: Any) -> Any:
        """Return how the tokenizer splits words. The converter does not know the one of random checkpoints."""
        try:
            return known(self, tokenizer)
        except NotImplementedError:
            return "deepseek-llm"

    TextModel.get_vocab_base_pre = splitting
    sys.stdin = io.StringIO()  # transformers would ask whether to run code that the checkpoint names
    script = str(llama_cpp / "convert_hf_to_gguf.py")
    to.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        linked = str(beside(checkpoint, Path(folder)))
        for options in ([str(to / "mmproj.gguf"), "--mmproj"], [str(to / "bf16.gguf")]):
            sys.argv = [script, linked, "--outtype", "bf16", "--outfile", *options]
            runpy.run_path(script, run_name="__main__")


class Peer(llama_text.Peer):
    """llama.cpp's language model with its encoder of images (mtmd)."""

    def __init__(self, files: Path, kind: str) -> None:
        super().__init__(kind)
        self._files = files

    def load(self, task: Task) -> Answer:
        import llama_cpp.mtmd_cpp as mtmd

        self.mtmd, threads = mtmd, task["threads"] or 2
        path = self._files / f"{self._kind}.gguf"
        if not path.exists():
            path = llama_text.quantize(self._files / "bf16.gguf", self._kind, threads)
        answer = self._load(path, threads)
        config = json.loads((Path(task["model"]) / "config.json").read_text(encoding="utf-8"))["language_config"]
        sizes = (self.lib.llama_model_n_layer(self.model), self.lib.llama_model_n_embd(self.model), self.vocabulary)
        if sizes != (config["num_hidden_layers"], config["hidden_size"], config["vocab_size"]):
            raise ValueError(f"{path} was written from another checkpoint: its sizes are {sizes}")
        self._eos = self.lib.llama_vocab_eos(self.lib.llama_model_get_vocab(self.model))
        return answer

    def _open(self, path: Path, threads: int) -> None:
        super()._open(path, threads)
        params = self.mtmd.mtmd_context_params_default()
        params.use_gpu, params.print_timings, params.n_threads = False, False, threads
        self.images = self.mtmd.mtmd_init_from_file(str(self._files / "mmproj.gguf").encode(), self.model, params)
        if not self.images:
            raise RuntimeError("llama.cpp could not load the encoder of images")

    def encode(self, task: Task) -> Answer:
        with self._prompt(make_image(SIDE_PX, task["seed"]), PAGE_PROMPT) as (_, view, _):

            def run() -> None:
                for _ in range(task["tiles"]):
                    _check(self.mtmd.mtmd_encode_chunk(self.images, view), "mtmd_encode_chunk")

            return timed(run)

    def first_token(self, task: Task) -> Answer:
        image = make_image(task["side"], task["seed"])
        return timed(lambda: self._read(image, QUESTIONS[0]))

    def page(self, task: Task) -> Answer:
        image = page_image(task)
        start = time.perf_counter()
        place = self._read(image, PAGE_PROMPT)
        token = self._choose()
        first = time.perf_counter()
        for step in range(task["tokens"] - 1):
            self._run([(token, place + step, 0)])
            token = self._choose()
        return page_answer(start, first, time.perf_counter())

    def _read(self, image: Any, text: str) -> int:
        """Read an image and a text into the empty cache, to the logits of the last position. Return their length."""
        self._forget()
        place = self.lib.llama_pos(0)
        with self._prompt(image, text) as chunks:
            for chunk in chunks:
                code = self.mtmd.mtmd_helper_eval_chunk_single(
                    *(self.images, self.context, chunk, place.value, 0, llama_text.CONTEXT),
                    *(chunk is chunks[-1], ctypes.byref(place)),
                )
                _check(code, "mtmd_helper_eval_chunk_single")
        return int(place.value)

    def _choose(self) -> int:
        """Return the likeliest token that does not end the answer."""
        logits = np.ctypeslib.as_array(self.lib.llama_get_logits_ith(self.context, -1), (self.vocabulary,))
        logits[self._eos] = -np.inf
        return int(logits.argmax())

    @contextmanager
    def _prompt(self, image: Any, text: str) -> Iterator[list[Any]]:
        """Yield the chunks of a prompt in mode `base`: the first token, the view of the image, the text."""
        mtmd = self.mtmd
        pixels = (ctypes.c_uint8 * (3 * image.width * image.height)).from_buffer_copy(image.tobytes())
        bitmap, chunks = mtmd.mtmd_bitmap_init(image.width, image.height, pixels), mtmd.mtmd_input_chunks_init()
        words = f"{BOS}{mtmd.mtmd_default_marker().decode()}{text}".encode()  # a line break is put behind the image
        prompt = mtmd.mtmd_input_text(words, len(words), False, True)
        bitmaps = (mtmd.mtmd_bitmap_p_ctypes * 1)(bitmap)
        try:
            _check(mtmd.mtmd_tokenize(self.images, chunks, ctypes.byref(prompt), bitmaps, 1), "mtmd_tokenize")
            all_chunks = [mtmd.mtmd_input_chunks_get(chunks, i) for i in range(mtmd.mtmd_input_chunks_size(chunks))]
            are_images = [mtmd.mtmd_input_chunk_get_type(c) == mtmd.MTMD_INPUT_CHUNK_TYPE_IMAGE for c in all_chunks]
            kept = [all_chunks[i] for i in without_crops(are_images)]
            check_page_tokens(sum(mtmd.mtmd_input_chunk_get_n_tokens(c) for c in kept[1:-1]))
            yield kept
        finally:
            mtmd.mtmd_input_chunks_free(chunks)
            mtmd.mtmd_bitmap_free(bitmap)


def _check(code: int, function: str) -> None:
    if code:
        raise RuntimeError(f"{function} returned {code}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["convert"] and len(sys.argv) == 5:
        convert(*map(Path, sys.argv[2:]))
        sys.exit()
    if len(sys.argv) not in (2, 3):
        sys.exit("usage: llama_page.py FILES [bf16|Q8_0|Q4_0], or llama_page.py convert LLAMA_CPP CHECKPOINT FILES")
    peer = Peer(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) == 3 else "bf16")
    serve(
        {
            "load": peer.load,
            "encode": peer.encode,
            "prefill": peer.prefill,
            "decode": peer.decode,
            "first_token": peer.first_token,
            "page": peer.page,
        }
    )
