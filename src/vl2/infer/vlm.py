"""`VLM`: a loaded model with its processor, and `load`, which opens a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import torch

from vl2.checkpoint import LoadOptions, load_model, locate_checkpoint, save_model
from vl2.checkpoint.folder import Progress
from vl2.checkpoint.policy import check_weights, memory_bytes
from vl2.checkpoint.resolve import BUILT_IN
from vl2.dtypes import DTYPES
from vl2.errors import UserError
from vl2.files import local_path
from vl2.infer.constraint import Constraint
from vl2.infer.constraint_boxes import WellFormedBoxes
from vl2.infer.generate import generate
from vl2.infer.prefill import Reuse
from vl2.infer.prompts import (
    describe_prompt,
    locate_like_prompt,
    locate_prompt,
    mark_object,
)
from vl2.infer.reply import Reply, Usage
from vl2.infer.sampling import GenerateOptions
from vl2.infer.sequence import Event, FinishReason, Limits
from vl2.infer.session import Session
from vl2.lora.peft_files import merge_adapter
from vl2.model import VL2
from vl2.model.int8_cache import AS_MODEL, CacheForm, check_cache
from vl2.model_kind import ModelKind
from vl2.process.conversation import Turn, one_question
from vl2.process.grounding import Box
from vl2.process.image import ImageOptions, ImageSource, open_image
from vl2.process.messages import Conversation
from vl2.process.processor import Processor
from vl2.process.sample import Sample
from vl2.process.tiling import Tiling
from vl2.process_tuning import tune_malloc
from vl2.quant.quantize_model import quantization_of
from vl2.runtime import Runner, choose_runner

if TYPE_CHECKING:
    from typing_extensions import Unpack

ENCODED_PER_ROW = 8  # requests encoded ahead for each row of the cache
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


class OptionFields(TypedDict, total=False):
    """The keyword arguments of all methods that generate: the fields of GenerateOptions."""

    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    frequency_penalty: float
    presence_penalty: float
    logit_bias: Mapping[int, float]
    no_repeat_ngram_size: int | None
    no_repeat_ngram_window: int
    no_repeat_ngram_allowed: Sequence[int]
    stop: Sequence[str]
    seed: int | None
    constraint: Constraint | None
    max_repeats: int
    prediction: str
    speculation: bool


@dataclass(frozen=True, kw_only=True)
class Request:
    """One conversation of a batch, with its own options."""

    messages: Conversation
    options: GenerateOptions = field(default_factory=GenerateOptions)
    with_probabilities: bool = False  # the reply has the probability of each token


def make_options(fields: Mapping[str, Any]) -> GenerateOptions:
    """Return the options with these values. Raise UserError for an unknown name or an invalid value."""
    known = list(GenerateOptions.__dataclass_fields__)
    unknown = [name for name in fields if name not in known]
    if unknown:
        raise UserError(f"unknown option {unknown[0]}: the options are {', '.join(known)}")
    return GenerateOptions(**fields)


def _with_boxes(options: OptionFields, constrained: bool) -> OptionFields:
    return {**options, "constraint": options.get("constraint") or WellFormedBoxes()} if constrained else options


class VLM:
    """A loaded vision-language model with its processor: it answers questions about images."""

    def __init__(
        self,
        model: VL2,
        processor: Processor,
        *,
        folder: Path,
        limits: Limits | None = None,
        reuse: Reuse | None = None,
        cache: str = AS_MODEL,
        runner: Runner | None = None,
    ) -> None:
        """`runner` is an existing runner of the model; None chooses the fastest one that supports it.

        `cache` is the form of the key-value cache for a new runner, as in `load`.
        """
        self.model = model
        self.runner = runner or choose_runner(model, cache=cache)
        self.processor = processor
        self.folder = folder  # the checkpoint folder; `save` copies its tokenizer files
        self.limits = limits or Limits(max_context=model.config.language_config.max_position_embeddings)
        self.reuse = reuse or Reuse()

    @property
    def limits(self) -> Limits:
        return self._limits

    @limits.setter
    def limits(self, limits: Limits) -> None:
        self._limits = limits
        self.processor = replace(self.processor, max_tokens=limits.max_context)

    @property
    def weights(self) -> str:
        """The form of the weights: "int8", "int4", or the name of their dtype."""
        return quantization_of(self.model) or str(self.model.dtype).removeprefix("torch.")

    @property
    def cache(self) -> CacheForm:
        """The form of the key-value cache: "int8", or "auto" for the model's own type."""
        return self.runner.cache

    def refresh(self) -> None:
        """Choose a new runner and clear the caches. Call it after weights have been changed, replaced or moved."""
        self.runner = choose_runner(self.model, cache=self.cache)
        self.reuse.clear()

    def chat(
        self,
        text: str,
        images: Sequence[ImageSource] = (),
        *,
        system: str | None = None,
        **options: Unpack[OptionFields],
    ) -> Reply:
        """Answer one question about any number of images. An image is a path, URL, data URL, bytes or PIL image."""
        return self.generate(one_question(text, images, system), **options)

    def stream(
        self,
        text: str,
        images: Sequence[ImageSource] = (),
        *,
        system: str | None = None,
        **options: Unpack[OptionFields],
    ) -> ReplyStream:
        """Yield the answer's text piece by piece. Close the iterator to stop; its `reply` is the answer so far."""
        return ReplyStream(self, text, images, system, options)

    def locate(
        self, query: str, image: ImageSource, *, constrained: bool = False, **options: Unpack[OptionFields]
    ) -> list[Box]:
        """Return the boxes of what `query` describes, in pixels of the image.

        `constrained` makes malformed boxes impossible. The answer may still have no boxes.
        """
        return self.chat(locate_prompt(query, self.processor.kind), [image], **_with_boxes(options, constrained)).boxes

    def locate_all(
        self,
        queries: Sequence[str],
        image: ImageSource,
        *,
        constrained: bool = False,
        **options: Unpack[OptionFields],
    ) -> list[Reply]:
        """Return a reply with boxes for each query. The answers are those of `locate`, and the image is encoded once.

        Raise UserError if there is no query, or an empty one.
        """
        if isinstance(queries, str) or not queries:
            raise UserError(f"queries must be a list of at least one description, got {queries!r}")
        picture = open_image(image, self.processor.image_options)
        made = make_options(_with_boxes(options, constrained))
        requests = [
            Request(messages=one_question(locate_prompt(query, self.processor.kind), [picture]), options=made)
            for query in queries
        ]
        # The first answer leaves the encoded image in the cache for the others.
        reuse = self.reuse if self.reuse.encoder.max_bytes else Reuse(prefix_bytes=0)
        return [*self._batch(requests[:1], reuse), *self._batch(requests[1:], reuse)]

    def locate_like(
        self,
        reference: ImageSource,
        box_px: Sequence[float],
        image: ImageSource,
        *,
        constrained: bool = False,
        **options: Unpack[OptionFields],
    ) -> list[Box]:
        """Return the boxes, in pixels of `image`, of objects of the same category as the one marked in `reference`.

        `box_px` marks it: x0, y0, x1, y1 in pixels. `constrained` makes malformed boxes impossible.
        """
        marked = mark_object(reference, box_px, self.processor.image_options)
        return self.chat(
            locate_like_prompt(self.processor.kind), [marked, image], **_with_boxes(options, constrained)
        ).boxes

    def describe(
        self, image: ImageSource, *, grounded: bool = False, constrained: bool = False, **options: Unpack[OptionFields]
    ) -> Reply:
        """Describe an image. `grounded` asks for boxes around named objects; `constrained` makes them well-formed."""
        return self.chat(
            describe_prompt(grounded=grounded, kind=self.processor.kind), [image], **_with_boxes(options, constrained)
        )

    def session(self, *, system: str | None = None) -> Session:
        """Start a conversation that remembers its turns."""
        return Session(self, system=system)

    def generate(self, messages: Conversation, **options: Unpack[OptionFields]) -> Reply:
        """Answer a whole conversation: turns, or messages in OpenAI's format or the released one."""
        return self.batch([Request(messages=messages, options=make_options(options))])[0]

    def events(
        self,
        messages: Conversation,
        *,
        is_cancelled: Callable[[], bool] = lambda: False,
        **options: Unpack[OptionFields],
    ) -> Iterator[Event]:
        """Yield an Event for each generated token of the answer to a conversation."""
        made = make_options(options)
        return self.sample_events(self.processor.encode(messages), made, is_cancelled=is_cancelled)

    def sample_events(
        self, sample: Sample, options: GenerateOptions, *, is_cancelled: Callable[[], bool] = lambda: False
    ) -> Iterator[Event]:
        """Yield an Event for each generated token of the answer to a conversation that is already encoded."""
        tokenizer = self.processor.tokenizer
        return generate(
            self.runner,
            tokenizer,
            [sample],
            [options],
            limits=self.limits,
            reuse=self.reuse,
            is_cancelled=is_cancelled,
        )

    def batch(
        self,
        requests: Sequence[Request | Conversation],
        *,
        is_cancelled: Callable[[], bool] = lambda: False,
        **options: Unpack[OptionFields],
    ) -> list[Reply]:
        """Answer many conversations, decoded together. `options` apply to the items that are not a Request.

        The answers equal those of separate calls, except that in bfloat16 without the kernels a near tie between two
        tokens may be rounded differently.
        """
        default = make_options(options)
        items = [r if isinstance(r, Request) else Request(messages=r, options=default) for r in requests]
        return self._batch(items, self.reuse, is_cancelled)

    def _batch(
        self, items: Sequence[Request], reuse: Reuse, is_cancelled: Callable[[], bool] = lambda: False
    ) -> list[Reply]:
        # Encode one window of requests at a time: the pixels of all images of a long list would not fit in memory.
        size = ENCODED_PER_ROW * self.limits.max_num_seqs
        windows = [range(start, min(start + size, len(items))) for start in range(0, len(items), size)]
        return [
            reply
            for window in windows
            for reply in self._answer([items[i] for i in window], window, reuse, is_cancelled)
        ]

    def _answer(
        self, items: Sequence[Request], numbers: range, reuse: Reuse, is_cancelled: Callable[[], bool]
    ) -> list[Reply]:
        samples = [self.processor.encode(r.messages, name=f"request {i}") for i, r in zip(numbers, items, strict=True)]
        events = generate(
            self.runner,
            self.processor.tokenizer,
            samples,
            [r.options for r in items],
            limits=self.limits,
            reuse=reuse,
            with_probabilities=[r.with_probabilities for r in items],
            is_cancelled=is_cancelled,
        )
        collected = [ReplyBuilder(sample, self.processor.kind) for sample in samples]
        for event in events:
            collected[event.request].add(event)
        return [builder.build() for builder in collected]

    def save(self, folder: str | Path) -> None:
        """Write a checkpoint in the released layout into a new folder. Raise UserError if the model is quantized."""
        if quantization_of(self.model) is not None:
            raise UserError("a quantized model is not saved: `vl2 quantize` writes one from the plain checkpoint")
        save_model(
            self.model,
            Path(folder),
            extra_files=[file for name in TOKENIZER_FILES if (file := self.folder / name).is_file()],
            extra_json={"processor_config.json": self.processor.config.to_dict()},
        )


class ReplyBuilder:
    """Collect the events of one request into a Reply."""

    def __init__(self, sample: Sample, kind: ModelKind = "DeepSeek-VL2") -> None:
        self._sample, self._kind = sample, kind
        self._pieces: list[str] = []
        self._ids: list[int] = []
        self._probabilities: list[float] = []
        self._ends: list[int] = []  # in the text with its outer white space
        self._num_chars = 0
        self._reason: FinishReason = "cancelled"

    def add(self, event: Event) -> None:
        self._pieces.append(event.piece)
        if event.token_id is not None:
            self._ids.append(event.token_id)
        self._num_chars += len(event.piece)
        if event.probability is not None:
            self._probabilities.append(event.probability)
            self._ends.append(self._num_chars)
        if event.finish_reason is not None:
            self._reason = event.finish_reason

    def build(self) -> Reply:
        whole = "".join(self._pieces)
        text = whole.strip()
        num_before = len(whole) - len(whole.lstrip())
        return Reply(
            text=text,
            token_ids=tuple(self._ids),
            finish_reason=self._reason,
            usage=Usage(
                prompt_tokens=len(self._sample.input_ids),
                visual_tokens=int(self._sample.image_mask.sum()),
                completion_tokens=len(self._ids),
            ),
            image_sizes=self._sample.image_sizes,
            kind=self._kind,
            token_probabilities=tuple(self._probabilities),
            token_ends=tuple(min(max(0, end - num_before), len(text)) for end in self._ends),
        )


class ReplyStream(Iterator[str]):
    """Yield the text of one answer piece by piece while it is generated. Work starts with the first `next`."""

    def __init__(
        self, vlm: VLM, text: str, images: Sequence[ImageSource], system: str | None, options: OptionFields
    ) -> None:
        self._builder: ReplyBuilder | None = None
        self._pieces = self._generate(vlm, lambda: one_question(text, images, system), options)

    def __next__(self) -> str:
        return next(self._pieces)

    def close(self) -> None:
        """Stop generating."""
        self._pieces.close()

    @property
    def reply(self) -> Reply:
        """The answer so far. Raise UserError before the first piece."""
        if self._builder is None:
            raise UserError("there is no reply before the first piece of the answer")
        return self._builder.build()

    def _generate(self, vlm: VLM, ask: Callable[[], list[Turn]], options: OptionFields) -> Generator[str]:
        made = make_options(options)
        sample = vlm.processor.encode(ask())
        self._builder = ReplyBuilder(sample, vlm.processor.kind)
        for event in vlm.sample_events(sample, made):
            self._builder.add(event)
            if event.piece:
                yield event.piece


def load(
    name: str | Path = BUILT_IN,
    *,
    device: str = "auto",
    dtype: str = "auto",
    weights: str = "auto",
    cache: str = AS_MODEL,
    memory: str | int | None = None,
    cache_tokens: int | None = None,
    adapter: str | Path | None = None,
    tiling: str | Tiling = "paper",
    max_tiles: int | None = None,
    image_options: ImageOptions | None = None,
    limits: Limits | None = None,
    reuse: Reuse | None = None,
    revision: str | None = None,
    offline: bool = False,
    progress: Progress | None = None,
    load_weights: Callable[[Path, LoadOptions, Progress | None], VL2] = load_model,
) -> VLM:
    """Load "nano" (built in), "tiny", "small" or "base" (released), a checkpoint folder, or a hub id.

    `device` "auto" chooses CUDA, then MPS, then the CPU. `dtype` "auto" keeps the checkpoint's own type if the device
    supports it. `weights` "int8" or "int4" quantizes a plain checkpoint while it is read; "auto" keeps it as it is.
    `cache` "int8" holds keys and values in 8 bits, on the CPU only; "auto" holds them in the model's type.
    `memory`, such as "8GB", limits the memory for weights, caches and work together, on the CPU only: experts of a
    quantized folder that do not fit are paged in and out. The plan assumes one conversation of the
    whole context, or `cache_tokens` positions of several conversations.
    `adapter` is a folder with a LoRA adapter in PEFT's format, which is merged into the weights.
    `tiling` is "paper", "per-image" or "budget:N"; `max_tiles` allows finer grids than the released nine.
    `load_weights` reads the weights; the default reads all of them in this process.
    `reuse` limits the memory for encoded images and for prefixes of prompts, by default 64 and 128 MiB.
    Raise UserError for invalid arguments.
    """
    # Check the arguments before anything is downloaded.
    on, as_type, bound = check_machine(device=device, dtype=dtype, weights=weights, cache=cache, memory=memory)
    rule = tiling if isinstance(tiling, Tiling) else Tiling.parse(tiling)
    reuse = reuse or Reuse()
    folder = locate_checkpoint(name, revision=revision, offline=offline)
    processor = Processor.from_folder(
        folder, tiling=rule, image_options=image_options or ImageOptions(), max_tiles=max_tiles
    )
    options = LoadOptions(
        device=on,
        dtype=as_type,
        only_answers=True,
        weights=weights,
        memory=bound,
        adapt=None if adapter is None else partial(merge_adapter, folder=local_path(adapter)),
        context=None if limits is None else limits.max_context,
        cache=check_cache(cache, on),
        cache_tokens=cache_tokens,
        reuse_bytes=reuse.max_bytes,
    )
    model = load_weights(folder, options, progress)
    if on.type == "cpu":
        tune_malloc()
    return VLM(model, processor, folder=folder, limits=limits, reuse=reuse, cache=cache)


def check_machine(
    *, device: str, dtype: str, weights: str, cache: str, memory: str | int | None
) -> tuple[torch.device, torch.dtype | None, int | None]:
    """Return the device, dtype and memory limit in bytes for `load`. Raise UserError for an invalid argument."""
    on = choose_device(device)
    as_type = choose_dtype(dtype, on)
    check_weights(weights)
    check_cache(cache, on)
    return on, as_type, memory_bytes(memory, on)


def choose_device(name: str) -> torch.device:
    """Return a device by name. Raise UserError if this machine does not have it."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device must be auto, cpu, cuda, cuda:N or mps, got {name}") from None
    is_there = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not is_there.get(device.type, False):
        present = [kind for kind in ("cpu", "cuda", "mps") if kind == "cpu" or getattr(torch, kind).is_available()]
        raise UserError(f"device {name} is not available here: choose one of auto, {', '.join(present)}")
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype | None:
    """Return a dtype by name, or None for the checkpoint's own type. Raise UserError for an unknown name.

    "auto" is the checkpoint's own type, and float16 on GPUs without bfloat16.
    """
    if name == "auto":
        return None if _has_bfloat16(device) else torch.float16
    if name not in DTYPES:
        raise UserError(f"dtype must be auto, {', '.join(DTYPES)}, got {name}")
    return DTYPES[name]


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "mps":
        return torch.backends.mps.is_macos_or_newer(14, 0)
    return True
