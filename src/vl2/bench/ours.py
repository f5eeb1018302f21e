"""vl2 as a target of a benchmark: a process that answers tasks (`python -m vl2.bench.ours`)."""

from __future__ import annotations

import time

STARTED = time.perf_counter()

from contextlib import closing  # noqa: E402
from pathlib import Path  # noqa: E402

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from vl2 import __version__  # noqa: E402
from vl2.bench.protocol import (  # noqa: E402
    QUESTIONS,
    Answer,
    Task,
    make_image,
    page_answer,
    page_image,
    random_ids,
    serve,
    timed,
)
from vl2.bench.stages import ComputeTypes, ModelBytes  # noqa: E402
from vl2.checkpoint.memory_plan import tiles_per_pass  # noqa: E402
from vl2.infer.engine.scheduler import joint_rows  # noqa: E402
from vl2.infer.prefill import prefill  # noqa: E402
from vl2.infer.prompts import read_prompt  # noqa: E402
from vl2.infer.sampling import GenerateOptions, choose_token  # noqa: E402
from vl2.infer.vlm import VLM, load  # noqa: E402
from vl2.kernels import describe_kernels  # noqa: E402
from vl2.model import Cache  # noqa: E402
from vl2.model.int8_cache import AS_MODEL, allocate_cache  # noqa: E402
from vl2.process.conversation import user_turn  # noqa: E402
from vl2.runtime import explain_choice  # noqa: E402
from vl2.runtime.cuda import CudaGraphRunner  # noqa: E402
from vl2.runtime.gpu import GpuKernelRunner  # noqa: E402
from vl2.timing import wait_for  # noqa: E402

IMPORT_S = time.perf_counter() - STARTED


class Ours:
    """A loaded model with one method per task of `vl2.bench.protocol`."""

    vlm: VLM

    def load(self, task: Task) -> Answer:
        if task["threads"] is not None:
            torch.set_num_threads(task["threads"])
        start = time.perf_counter()
        self.vlm = load(
            Path(task["model"]),
            device=task["device"],
            dtype=task["dtype"],
            weights=task["weights"],
            cache=task.get("cache", AS_MODEL),
            tiling=task.get("tiling", "paper"),
        )
        seconds = time.perf_counter() - start
        model = self.vlm.model
        return {
            "seconds": seconds,
            "import_seconds": IMPORT_S,
            "name": f"vl2 {__version__}",
            "versions": {"torch": torch.__version__},
            "threads": torch.get_num_threads(),
            "device": str(model.device),
            "compute": ComputeTypes.of(model).to_dict(),
            "runner": [f"runner: {line}" for line in explain_choice(self.vlm.runner, model)],
            "kernels": describe_kernels() if model.device.type == "cpu" else "none: they are for a CPU",
            "bytes": ModelBytes.of(model, self.vlm.cache).to_dict(),
        }

    @torch.inference_mode()
    def encode(self, task: Task) -> Answer:
        side = self.vlm.model.config.vision_config.image_size
        generator = torch.Generator().manual_seed(task["seed"])
        tiles = torch.randn(task["tiles"], 3, side, side, generator=generator)

        def run() -> None:
            for part in tiles.split(tiles_per_pass(self.vlm.model.config, self.vlm.model.device)):
                self.vlm.runner.encode(part.to(self.vlm.model.device))
            wait_for(self.vlm.model.device)

        return timed(run)

    @torch.inference_mode()
    def prefill(self, task: Task) -> Answer:
        cache, ids_1S = self._cache(1, task["tokens"]), self._prompt(task["tokens"], task["seed"])

        def run() -> None:
            self._prefill(ids_1S, cache)
            wait_for(self.vlm.model.device)

        return timed(run)

    @torch.inference_mode()
    def decode(self, task: Task) -> Answer:
        """Time batched decoding steps after a prompt. The ids are random, so that rows select different experts."""
        batch, context, steps = task["batch"], task["context"], task["steps"]
        model, ids = self.vlm.model, random_ids(batch * steps, self._vocabulary, task["seed"] + 1)
        options, generator = GenerateOptions(), torch.Generator()
        longest = model.config.language_config.max_position_embeddings
        with closing(self.vlm.runner.cache_pool(batch, context + steps, batch * longest)) as pool:
            rows = [pool.take(context + steps) for _ in range(batch)]
            self._prefill(self._prompt(context, task["seed"]), rows[0])
            for row in rows[1:]:
                for ours, first in zip(row.layers, rows[0].layers, strict=True):
                    for t, filled in zip(ours, first, strict=True):
                        t.copy_(filled)
                row.lengths = [context]

            def run() -> None:
                for step in range(steps):
                    given = ids[step * batch : (step + 1) * batch]
                    for logits_V in self.vlm.runner.decode(given, rows, joint_rows(batch)):
                        choose_token(logits_V, options, seen_ids=(), new_ids=(), generator=generator)

            if isinstance(self.vlm.runner, CudaGraphRunner | GpuKernelRunner):
                run()  # the first run records the CUDA graphs and compiles the Triton kernels
                for row in rows:
                    row.lengths = [context]
            wait_for(model.device)
            return timed(run)

    def first_token(self, task: Task) -> Answer:
        return self._ask(task, QUESTIONS[0])

    def second_question(self, task: Task) -> Answer:
        return self._ask(task, QUESTIONS[1])

    def _ask(self, task: Task, question: str) -> Answer:
        """Time from an image and a question to the first token of the answer."""
        image = make_image(task["side"], task["seed"])
        content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
        events = self.vlm.events([{"role": "user", "content": content}], max_new_tokens=2)
        answer = timed(lambda: next(events))
        events.close()  # type: ignore[attr-defined]
        return answer

    def page(self, task: Task) -> Answer:
        """Time a page from the picture to the first token, and to the end of an answer of a given length."""
        image = page_image(task)
        never_ends = {self.vlm.processor.tokenizer.eos_id: -100.0}
        turn = user_turn(read_prompt(self.vlm.processor.kind), [image])
        start = time.perf_counter()
        events = self.vlm.events([turn], max_new_tokens=task["tokens"], logit_bias=never_ends)
        next(events)
        first = time.perf_counter()
        for _ in events:
            pass
        return page_answer(start, first, time.perf_counter())

    def _prompt(self, num_tokens: int, seed: int) -> Tensor:
        return torch.tensor([random_ids(num_tokens, self._vocabulary, seed)], device=self.vlm.model.device)

    def _prefill(self, ids_1S: Tensor, row: Cache) -> None:
        prefill(self.vlm.runner, self.vlm.model.language.embed(ids_1S), row)

    def _cache(self, rows: int, capacity: int) -> Cache:
        model, form = self.vlm.model, self.vlm.cache
        return allocate_cache(
            form, model.config.language_config, rows, capacity, dtype=model.dtype, device=model.device
        )

    @property
    def _vocabulary(self) -> int:
        return self.vlm.model.config.language_config.vocab_size


def main() -> None:
    ours = Ours()
    serve(
        {
            "load": ours.load,
            "encode": ours.encode,
            "prefill": ours.prefill,
            "decode": ours.decode,
            "first_token": ours.first_token,
            "second_question": ours.second_question,
            "page": ours.page,
        }
    )


if __name__ == "__main__":
    main()
