"""The backend that runs vLLM, for high load, with the same checkpoint and the same API.

Prompts and answers are exchanged as token ids, so the chat template, tags and boxes are handled by this package. vLLM
tiles and encodes the images itself, by the paper's rule.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Any

from vl2.errors import UserError
from vl2.infer.answer_stream import AnswerStream
from vl2.infer.constraint import JsonSchema
from vl2.infer.engine.engine import EngineFull, EngineStopped
from vl2.infer.engine.request import Logprobs, Output
from vl2.infer.repetition import ends_in_loop
from vl2.infer.sequence import ContextExceeded, FinishReason, check_bias
from vl2.optional_imports import install_packages
from vl2.process.processor import Processor
from vl2.process.sample import Sample
from vl2.process.tokenizer import BOS, EOS, PAD, Tokenizer
from vl2.serve.backend import GenerationRequest, Timing
from vl2.serve.telemetry import MetricValues

ARCHITECTURE = "DeepseekVLV2ForCausalLM"
MAX_ACTIVE = 1024


class VllmBackend:
    """A backend that runs vLLM's asynchronous engine in this process."""

    needs_images = True
    calls_tools = False  # our grammar is written for llguidance, which need not be vLLM's library

    def __init__(
        self,
        folder: Path,
        processor: Processor,
        *,
        max_context: int,
        max_images: int,
        dtype: str = "auto",
        more: Mapping[str, Any] | None = None,
    ) -> None:
        """Write the files that vLLM needs. `start` loads the model. `more` are arguments of vLLM's engine.

        Raise UserError if vLLM is not installed, if it does not accept an argument, if another tiling than the
        paper's is wanted, or if the model has an image scale.
        """
        if processor.tiling.rule != "paper" or processor.max_tiles is not None:
            raise UserError("vLLM supports the paper's tiling rule only: omit --tiling and --max-tiles")
        if processor.config.image_scale != 1:
            raise UserError(
                f"vLLM does not know this model's image_scale, which is {processor.config.image_scale}: "
                "serve it without --engine vllm"
            )
        self._vllm = _library()
        self.processor, self.max_context = replace(processor, max_tokens=max_context), max_context
        self._folder = tempfile.TemporaryDirectory(prefix="vl2-vllm-")
        arguments: dict[str, Any] = {
            "model": str(_link_checkpoint(folder, processor.tokenizer, Path(self._folder.name))),
            "dtype": dtype,
            "max_model_len": max_context,
            "hf_overrides": {"architectures": [ARCHITECTURE]},
            "limit_mm_per_prompt": {"image": max_images},
            **(more or {}),
        }
        try:
            self._arguments = self._vllm.AsyncEngineArgs(**arguments)
        except TypeError as error:  # its message names the unknown argument
            raise UserError(f"vLLM's engine does not take this: {error}") from None
        self._engine: Any = None
        self._num_active = 0
        self._num_generated = 0
        self._is_stopping = False

    @property
    def is_ready(self) -> bool:
        return self._engine is not None and not self._is_stopping and not getattr(self._engine, "errored", False)

    async def start(self) -> None:
        from vllm.v1.engine.async_llm import AsyncLLM

        self._engine = AsyncLLM.from_engine_args(self._arguments)

    async def stop(self) -> None:
        self._is_stopping = True
        if self._engine is not None:
            self._engine.shutdown()
        self._engine = None  # its finalizer shuts down again, which must happen before Python exits
        self._folder.cleanup()

    async def open(self, requests: Sequence[GenerationRequest]) -> _Answers:
        if self._is_stopping:
            raise EngineStopped("the server is stopping")
        if self._num_active + len(requests) > MAX_ACTIVE:
            raise EngineFull(f"{self._num_active} requests are active already: try again later")
        for request in requests:
            if len(request.sample) >= self.max_context:
                raise ContextExceeded(request.sample, self.max_context)
            check_bias(request.options, self.processor.tokenizer)
        return _Answers(self, requests, [self._sampling(request) for request in requests])

    def metric_values(self) -> MetricValues:
        # vLLM has other metrics of its own.
        return {"vl2_running": self._num_active, "vl2_generated_tokens": self._num_generated}

    def _sampling(self, request: GenerationRequest) -> Any:
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        options = request.options
        if options.no_repeat_ngram_size:
            raise UserError("no_repeat_ngram_size is not supported with vLLM; leave it out")
        if options.constraint is not None and not isinstance(options.constraint, JsonSchema):
            raise UserError("well-formed boxes cannot be forced with vLLM; leave well_formed_boxes out")
        given: dict[str, Any] = {}
        if isinstance(options.constraint, JsonSchema):
            given["structured_outputs"] = StructuredOutputsParams(json=options.constraint.text)
        return self._vllm.SamplingParams(
            max_tokens=min(options.max_new_tokens, self.max_context - len(request.sample)),
            temperature=options.temperature,
            top_p=options.top_p,
            top_k=options.top_k or -1,
            min_p=options.min_p,
            repetition_penalty=options.repetition_penalty,
            frequency_penalty=options.frequency_penalty,
            presence_penalty=options.presence_penalty,
            logit_bias=dict(options.logit_bias) or None,
            seed=options.seed,
            logprobs=request.num_logprobs,
            stop_token_ids=[self.processor.tokenizer.eos_id],
            output_kind=RequestOutputKind.DELTA,
            **given,
        )

    async def generate(self, request: GenerationRequest, sampling: Any) -> AsyncIterator[Output]:
        """Yield one output per token of a request's answer."""
        request_id = uuid.uuid4().hex
        prompt: dict[str, Any] = {"prompt_token_ids": prompt_ids(request.sample, self.processor.tokenizer.image_id)}
        if request.images:
            prompt["multi_modal_data"] = {"image": list(request.images)}
        engine, reader = self._engine, _AnswerReader(request, self.processor)
        is_over = False
        self._num_active += 1
        try:
            stream = engine.generate(prompt, sampling, request_id)
            async for output in stream:
                (part,) = output.outputs
                logprobs = part.logprobs or [None] * len(part.token_ids)
                for place, (token_id, known) in enumerate(zip(part.token_ids, logprobs, strict=True)):
                    is_last = place == len(part.token_ids) - 1
                    made = reader.read(token_id, known, part.finish_reason if is_last else None)
                    self._num_generated += 1
                    is_over = made.is_last
                    yield made
                    if is_over:
                        return
                if part.finish_reason is not None and not part.token_ids:
                    is_over = True
                    yield Output(finish_reason="length" if part.finish_reason == "length" else "stop")
                    return
        finally:
            self._num_active -= 1
            if not is_over or reader.stopped_early:
                await engine.abort(request_id)


class _AnswerReader:
    """Converts the token ids of one answer to outputs."""

    def __init__(self, request: GenerationRequest, processor: Processor) -> None:
        self._options, self._num_logprobs = request.options, request.num_logprobs
        self._tokenizer = processor.tokenizer
        self._text = AnswerStream(processor.tokenizer, request.options.stop)
        self._ids: list[int] = []
        self.stopped_early = False  # by a stop string or a repetition, so vLLM must be told to abort

    def read(self, token_id: int, known: Any, finish_reason: str | None) -> Output:
        self._ids.append(token_id)
        reason: FinishReason | None = None
        if token_id == self._tokenizer.eos_id:
            piece, reason = self._text.finish(), "stop"
        else:
            piece = self._text.push(token_id)
            repeats = self._options.max_repeats
            if self._text.is_stopped:
                reason, self.stopped_early = "stop", finish_reason is None
            elif repeats and ends_in_loop(self._ids, repeats):
                piece, reason, self.stopped_early = piece + self._text.finish(), "repetition", finish_reason is None
            elif finish_reason is not None:
                piece, reason = piece + self._text.finish(), "length" if finish_reason == "length" else "stop"
        return Output(token_id=token_id, piece=piece, finish_reason=reason, logprobs=self._logprobs(token_id, known))

    def _logprobs(self, token_id: int, known: Any) -> Logprobs | None:
        if known is None or self._num_logprobs is None:
            return None
        # vLLM adds the sampled token to the most likely ones if it is not among them.
        ranked = sorted(known.items(), key=lambda entry: -entry[1].logprob)[: self._num_logprobs]
        return Logprobs(chosen=known[token_id].logprob, likeliest={i: entry.logprob for i, entry in ranked})


def prompt_ids(sample: Sample, image_id: int) -> list[int]:
    """Return the prompt with one `<image>` per image, which vLLM repeats for the visual tokens."""
    ids, place = [], 0
    lengths = iter(sample.layout.num_tokens(grid) for grid in sample.grid_list)
    mask = sample.image_mask.tolist()
    given = sample.input_ids.tolist()
    while place < len(given):
        ids.append(image_id if mask[place] else given[place])
        place += next(lengths) if mask[place] else 1
    return ids


class _Answers:
    """The answers to requests that were opened together."""

    def __init__(self, backend: VllmBackend, requests: Sequence[GenerationRequest], samplings: Sequence[Any]) -> None:
        self._outputs: asyncio.Queue[tuple[int, Output] | None] = asyncio.Queue()
        self._began = monotonic()
        self._first: dict[int, float] = {}
        self._last: dict[int, float] = {}
        self._num_left = len(requests)
        self._tasks = [
            asyncio.create_task(self._run(backend, index, request, sampling))
            for index, (request, sampling) in enumerate(zip(requests, samplings, strict=True))
        ]

    async def _run(self, backend: VllmBackend, index: int, request: GenerationRequest, sampling: Any) -> None:
        last: Output | None = None
        try:
            async for last in backend.generate(request, sampling):
                self._first.setdefault(index, monotonic())
                self._last[index] = monotonic()
                self._outputs.put_nowait((index, last))
        except Exception as error:
            self._outputs.put_nowait((index, Output(error=error)))
        else:
            if last is None or not last.is_last:
                stopped = EngineStopped("the server stopped before the answer was complete")
                self._outputs.put_nowait((index, Output(error=stopped)))

    async def __aiter__(self) -> AsyncIterator[tuple[int, Output]]:
        while self._num_left and (item := await self._outputs.get()) is not None:
            self._num_left -= item[1].is_last
            yield item

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        self._outputs.put_nowait(None)

    def timing(self, index: int) -> Timing:
        first, last = self._first.get(index), self._last.get(index)
        return Timing(
            started_s=None,  # vLLM's own metrics have it
            first_token_s=first - self._began if first else None,
            whole_s=last - self._began if last else None,
        )


def _link_checkpoint(folder: Path, tokenizer: Tokenizer, to: Path) -> Path:
    """Link a checkpoint into `to`, with a tokenizer file that has all special tokens, because vLLM adds none."""
    for file in folder.iterdir():
        if file.name not in ("tokenizer.json", "tokenizer_config.json"):
            (to / file.name).symlink_to(file.absolute())
    (to / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
    named = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BOS, "eos_token": EOS, "pad_token": PAD}
    (to / "tokenizer_config.json").write_text(json.dumps(named), encoding="utf-8")
    return to


def _library() -> Any:
    try:
        import vllm
    except ImportError:
        raise UserError(
            f"--engine vllm needs vLLM: {install_packages('vllm')}, in an environment with the torch that it needs"
        ) from None
    return vllm
