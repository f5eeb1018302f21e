"""Flags that several commands share, and the objects made from them."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import tyro

from vl2.cli import ranks
from vl2.errors import UserError
from vl2.progress import bytes_bar

if TYPE_CHECKING:
    from PIL import Image

    from vl2.infer.constraint import JsonSchema
    from vl2.infer.sampling import GenerateOptions
    from vl2.infer.vlm import VLM, OptionFields
    from vl2.model_kind import ModelKind
    from vl2.process.processor import Processor
    from vl2.process.tiling import Tiling


Images = Annotated[
    tuple[str, ...], tyro.conf.arg(name="image", aliases=["-i"], metavar="IMAGE"), tyro.conf.UseAppendAction
]
# No "(default: None)" in the help: leaving such a flag out turns it off.
OptionalText = Annotated[str | None, tyro.conf.arg(metavar="TEXT", help_behavior_hint="")]
OptionalFile = Annotated[str | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")]
OptionalFolder = Annotated[str | None, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="")]
OptionalInt = Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="")]


@dataclass(frozen=True, kw_only=True)
class CheckpointFlags:
    """Which model, and how it reads images."""

    model: Annotated[str, tyro.conf.arg(aliases=["-m"], metavar="NAME")] = "nano"
    """nano (built in), tiny, small or base (released), a checkpoint folder, or a hub id"""
    tiling: Annotated[str, tyro.conf.arg(metavar="RULE")] = "paper"
    """paper (off above two images), per-image, or budget:N (at most N visual tokens); for DeepSeek-OCR paper, or
    tiny, small, base, large or gundam"""
    max_tiles: OptionalInt = None
    """allow finer grids than the released nine tiles, e.g. 18 for infographics"""
    revision: OptionalText = None
    """branch, tag or commit on the hub"""
    offline: bool = False
    """use only what is already downloaded"""

    def locate(self, *, quiet: bool, needs_weights: bool = True) -> Path:
        """Return the checkpoint's folder, after downloading it if necessary."""
        return locate(
            self.model, revision=self.revision, offline=self.offline, quiet=quiet, needs_weights=needs_weights
        )

    def kind(self, *, quiet: bool) -> ModelKind:
        """Return which model it is, which decides what it is asked; its settings are downloaded if need be."""
        from vl2.checkpoint.resolve import BUILT_IN, hub_id
        from vl2.process.processor import kind_of_folder

        if self.model == BUILT_IN or hub_id(self.model) != self.model:  # a released size
            return "DeepSeek-VL2"
        return kind_of_folder(self.locate(quiet=quiet, needs_weights=False))

    def tiling_rule(self) -> Tiling:
        from vl2.process.tiling import Tiling, check_max_tiles

        if self.max_tiles is not None:
            check_max_tiles(self.max_tiles)
        return Tiling.parse(self.tiling)


@dataclass(frozen=True, kw_only=True)
class ModelFlags(CheckpointFlags):
    """Which model, and how it runs."""

    # These are the arguments of `vl2.load`, with the same names and defaults. A test compares them.
    device: Annotated[str, tyro.conf.arg(metavar="DEVICE")] = "auto"
    """auto, cpu, cuda, cuda:N or mps"""
    dtype: Annotated[str, tyro.conf.arg(metavar="DTYPE")] = "auto"
    """auto, float32, bfloat16 or float16"""
    weights: Annotated[str, tyro.conf.arg(metavar="FORM")] = "auto"
    """int8 or int4 quantizes while loading; auto takes the checkpoint as it is"""
    cache: Annotated[str, tyro.conf.arg(metavar="FORM")] = "auto"
    """int8 holds keys and values in about half the memory, on a CPU; auto in the model's type"""
    memory: Annotated[str | None, tyro.conf.arg(metavar="SIZE", help_behavior_hint="")] = None
    """keep within e.g. 8GB; experts of a quantized folder are paged in and out for it"""
    adapter: Annotated[str | None, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="")] = None
    """LoRA adapter in PEFT's format, as `vl2 finetune` writes it"""
    max_context: OptionalInt = None
    """tokens of prompt and answer; the checkpoint's own by default"""
    prefill_chunk: OptionalInt = None
    """read long prompts in passes of this many tokens, to save memory"""

    def check(self) -> None:
        """Raise UserError for invalid values, before anything is downloaded or loaded."""
        from vl2.infer.sequence import Limits
        from vl2.infer.vlm import check_machine

        self.tiling_rule()
        Limits(prefill_chunk=self.prefill_chunk, max_context=1 if self.max_context is None else self.max_context)
        check_machine(device=self.device, dtype=self.dtype, weights=self.weights, cache=self.cache, memory=self.memory)

    def context(self, *, quiet: bool) -> int:
        """Return the context length in tokens: that of the flag, or the checkpoint's own.

        Raise UserError if the flag exceeds the checkpoint's.
        """
        from vl2.config import ModelConfig

        folder = self.locate(quiet=quiet, needs_weights=False)
        own = ModelConfig.from_file(folder / "config.json").language_config.max_position_embeddings
        if self.max_context is not None and self.max_context > own:
            raise UserError(f"max_context must be at most {own}, the model's own, got {self.max_context}")
        return self.max_context or own

    def load(self, *, quiet: bool, cache_tokens: int | None = None) -> VLM:
        """Load the model with a progress bar on stderr. `cache_tokens` as in `vl2.load`."""
        from vl2.checkpoint import load_model
        from vl2.checkpoint.resolve import BUILT_IN
        from vl2.infer.sequence import Limits
        from vl2.infer.vlm import load

        self.check()
        folder = self.locate(quiet=quiet)
        # Under torchrun, the other processes load and run a part of the experts.
        leader = ranks.leader()
        with bytes_bar(quiet) as progress:
            vlm = load(
                BUILT_IN if self.model == BUILT_IN else folder,
                device=self.device if leader is None else str(leader.ranks.device),
                dtype=self.dtype,
                weights=self.weights,
                cache=self.cache,
                memory=self.memory,
                cache_tokens=cache_tokens,
                limits=None if self.max_context is None else Limits(max_context=self.max_context),
                adapter=self.adapter,
                tiling=self.tiling_rule(),
                max_tiles=self.max_tiles,
                progress=progress,
                load_weights=load_model if leader is None else leader.load,
            )
        vlm.limits = replace(
            vlm.limits, max_context=self.max_context or vlm.limits.max_context, prefill_chunk=self.prefill_chunk
        )
        return vlm


@dataclass(frozen=True, kw_only=True)
class GenerateFlags:
    """How the answer is generated."""

    max_new_tokens: int = 512
    """end the answer after this many tokens"""
    temperature: float = 0.0
    """how freely tokens are drawn; 0 always takes the likeliest"""
    top_p: float = 1.0
    """draw from the likeliest tokens that sum to this probability; 1 is off"""
    top_k: int = 0
    """draw from this many of the likeliest tokens; 0 is off"""
    min_p: float = 0.0
    """draw from tokens at least this many times as likely as the likeliest; 0 is off"""
    repetition_penalty: float = 1.0
    """above 1 makes tokens that were already used less likely"""
    no_repeat_ngram_size: OptionalInt = None
    """forbid the answer to repeat n-grams of this size; 0 is off (default: as the model was released)"""
    no_repeat_ngram_window: int = 0
    """look for them in the last so many tokens of prompt and answer; 0 is the whole answer"""
    max_repeats: int = 0
    """end an answer that says something so many times in a row; 0 is off"""
    stop: Annotated[tuple[str, ...], tyro.conf.arg(metavar="TEXT"), tyro.conf.UseAppendAction] = ()
    """end the answer before this text"""
    seed: OptionalInt = None
    """repeats the draws of a temperature above 0"""
    speculation: bool = True
    """guess tokens and check several in one step, which is exact and faster"""

    def options(self) -> GenerateOptions:
        from vl2.infer.sampling import GenerateOptions

        return GenerateOptions(**vars(self))


def option_fields(options: GenerateOptions) -> OptionFields:
    """Return options as the keyword arguments of `VLM`'s methods."""
    return cast("OptionFields", vars(options))


def check_answer_length(model: ModelFlags, generate: GenerateFlags, *, quiet: bool) -> None:
    """Raise UserError if max_new_tokens exceeds the model's context, unless it is the default, which is reduced."""
    model.check()
    context = model.context(quiet=quiet)
    if generate.max_new_tokens > context and generate.max_new_tokens != type(generate)().max_new_tokens:
        raise UserError(
            f"max_new_tokens must be at most {context}, the context for prompt and answer together, "
            f"got {generate.max_new_tokens}"
        )


@dataclass(frozen=True, kw_only=True)
class OutputFlags:
    """What is printed."""

    json: bool = False
    """print one JSON object instead of text"""
    quiet: Annotated[bool, tyro.conf.arg(aliases=["-q"])] = False
    """print nothing but the answer"""


def locate(name: str, *, revision: str | None, offline: bool, quiet: bool, needs_weights: bool = True) -> Path:
    """Return the folder of a checkpoint. `quiet` silences the hub client's output during a download."""
    if quiet:
        silence_hub()
    from vl2.checkpoint import locate_checkpoint

    return locate_checkpoint(name, revision=revision, offline=offline, needs_weights=needs_weights)


def silence_hub() -> None:
    """Silence the hub client. It reads these variables when it is first imported, so call this before."""
    os.environ.update(HF_HUB_DISABLE_PROGRESS_BARS="1", HF_HUB_VERBOSITY="error")


def read_text(text: str) -> str:
    """Return the question, for "-" read from stdin as UTF-8 in any locale."""
    if text != "-":
        return text
    try:
        return stdin_bytes().decode("utf-8-sig").replace("\r\n", "\n")  # Windows editors write a BOM and CRLF
    except UnicodeDecodeError:
        raise UserError("the question on stdin is not text (UTF-8)") from None


def read_schema(path: str) -> JsonSchema:
    """Return the JSON schema in a file."""
    from vl2.infer.constraint import JsonSchema

    try:
        return JsonSchema(json.loads(Path(path).read_text(encoding="utf-8")))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from None


def open_images(names: Sequence[str], *, is_stdin_taken: bool = False) -> list[Image.Image]:
    """Open the images named on the command line ("-" is stdin). Call this before the model is loaded."""
    from vl2.process.image import open_image

    if list(names).count("-") + is_stdin_taken > 1:
        raise UserError("only one thing can come from stdin (-)")
    return [open_image(stdin_bytes() if name == "-" else name) for name in names]


def stdin_bytes() -> bytes:
    """Read all of stdin. Raise UserError if there is none."""
    if sys.stdin is None:
        raise UserError("there is no stdin to read - from")
    return sys.stdin.buffer.read()


def print_json(value: Any, *, indent: int | None = 2) -> None:
    """Print indented JSON, with non-ASCII characters escaped if stdout is not Unicode."""
    is_unicode = (sys.stdout.encoding or "").lower().startswith("utf")
    print(json.dumps(value, ensure_ascii=not is_unicode, indent=indent), flush=True)


Locations = Annotated[
    tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="LOCATION ...", help_behavior_hint="")
]
Number = Annotated[int, tyro.conf.arg(metavar="INT")]


def check_locations(locations: tuple[str, ...]) -> None:
    if not locations:
        raise UserError("say where the records are: files, folders, globs or URLs")


def load_processor(model: CheckpointFlags, *, quiet: bool) -> Processor:
    """Return a model's processor, which encodes records. No weights are loaded."""
    from vl2.process.processor import Processor

    tiling = model.tiling_rule()
    return Processor.from_folder(model.locate(quiet=quiet), tiling=tiling, max_tiles=model.max_tiles)


def write_text(path: str, text: str) -> None:
    """Write a file; half a character, which no file can hold, becomes a question mark."""
    try:
        Path(path).write_text(text, encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None
