"""The command `vl2 bench`, which measures a model's speed and memory beside the machine's limits and other programs."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro

from vl2.cli.flags import OptionalFile, OptionalInt, OutputFlags, locate, print_json
from vl2.config import OCR_PRESETS, PRESETS, ModelConfig
from vl2.errors import UserError

RANDOM = "random:"
Words = Annotated[tuple[str, ...], tyro.conf.arg(metavar="TEXT"), tyro.conf.UseAppendAction]


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Measure loading, encoding, reading a prompt, decoding and memory, as shares of this machine's own limits.

    With --against a peer takes turns with this model: a name of benchmarks/peers, or the command of any program that
    speaks the same few lines of JSON (docs/benchmarks.md).

    Examples:
      vl2 bench --quick
      vl2 bench --model ./deepseek-vl2-tiny --out bench.json
      vl2 bench --model random:tiny --against "vllm-venv/bin/python benchmarks/peers/vllm_cpu.py"
    """

    model: Annotated[str, tyro.conf.arg(aliases=["-m"], metavar="NAME")] = "nano"
    """nano, tiny, small or base, a checkpoint folder, a hub id, or random:SIZE (random weights; a SIZE may also be
    deepseek-ocr, unlimited-ocr or deepseek-ocr-2)"""
    device: Annotated[str, tyro.conf.arg(metavar="DEVICE")] = "auto"
    """auto, cpu, cuda, cuda:N or mps"""
    dtype: Annotated[str, tyro.conf.arg(metavar="DTYPE")] = "auto"
    """auto, float32, bfloat16 or float16"""
    weights: Annotated[str, tyro.conf.arg(metavar="FORM")] = "auto"
    """auto, int8 or int4: quantize a plain checkpoint while it is read; peers get the plain one"""
    cache: Annotated[str, tyro.conf.arg(metavar="FORM")] = "auto"
    """int8 holds this model's keys and values in 8 bits, on a CPU; peers keep their own cache"""
    threads: OptionalInt = None
    """threads of this model, of peers and of the limits; by default PyTorch's own number"""
    quick: bool = False
    """one round of little: whether it runs, not how fast"""
    rounds: OptionalInt = None
    """how often everything is measured; 3 by default, 1 with --quick"""
    only: Words = ()
    """measure these alone: encode, prefill, decode, first-token, page (DeepSeek-OCR family), memory"""
    against: Words = ()
    """a peer: a name of benchmarks/peers, or a command"""
    folder: OptionalFile = None
    """with random:SIZE, keep the weights in this folder, or take them from it; else they are deleted at the end"""
    out: OptionalFile = None
    """write everything that was measured to this file, as JSON"""
    output: OutputFlags = field(default_factory=OutputFlags)

    def run(self) -> None:
        from vl2.bench.measure import compare, print_report, to_dict
        from vl2.bench.stages import Sizes, make_stages
        from vl2.bench.target import OURS, peer_command
        from vl2.infer.vlm import check_machine
        from vl2.process.preprocess_config import PreprocessConfig

        for name in ("threads", "rounds"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} must be at least 1, got {value}")
        device, _, _ = check_machine(
            device=self.device, dtype=self.dtype, weights=self.weights, cache=self.cache, memory=None
        )
        sizes = Sizes.quick() if self.quick else Sizes()
        sizes = replace(sizes, rounds=self.rounds or sizes.rounds)
        commands = [list(OURS), *(peer_command(text) for text in self.against)]
        if self.out is not None and not Path(self.out).absolute().parent.is_dir():
            raise UserError(f"cannot write {self.out}: there is no folder {Path(self.out).parent}")
        if self.out is not None and Path(self.out).is_dir():
            raise UserError(f"cannot write {self.out}: it is a folder")
        with self._checkpoint() as checkpoint, _saying(self.output.quiet) as say:
            config = ModelConfig.from_file(checkpoint / "config.json")
            image_scale = PreprocessConfig.from_file(checkpoint / "processor_config.json").image_scale
            stages = make_stages(config, sizes, self.only, image_scale=image_scale)
            load_task = {
                "do": "load",
                "model": str(checkpoint),
                "dtype": self.dtype,
                "weights": self.weights,
                "cache": self.cache,
                "device": str(device),
                "threads": self.threads,
                **({} if config.kind == "DeepSeek-VL2" else {"tiling": "base"}),
            }
            comparison = compare(config, commands, stages, load_task, sizes, device=device, say=say)
        result = to_dict(comparison, self.model)
        if self.output.json:
            print_json(result)
        else:
            print_report(comparison, sys.stdout)
        if self.out is not None:  # after printing, so that the results are not lost if the file cannot be written
            try:
                Path(self.out).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
            except OSError as error:
                raise UserError(f"cannot write {self.out}: {error.strerror}") from None

    @contextlib.contextmanager
    def _checkpoint(self) -> Iterator[Path]:
        """Yield the checkpoint's folder. One with random weights is deleted at the end, unless --folder is given."""
        if not self.model.startswith(RANDOM):
            if self.folder is not None:
                raise UserError("--folder is for random:SIZE")
            yield locate(self.model, revision=None, offline=False, quiet=self.output.quiet).absolute()
            return
        size = self.model.removeprefix(RANDOM)
        if size not in (sizes := (*PRESETS, *OCR_PRESETS)):
            raise UserError(f"{RANDOM}SIZE must have one of the sizes {', '.join(sizes)}, got {size}")
        from vl2.checkpoint.random_checkpoint import random_checkpoint

        with random_checkpoint(size, None if self.folder is None else Path(self.folder)) as folder:
            yield folder.absolute()


@contextlib.contextmanager
def _saying(quiet: bool) -> Iterator[Callable[[str], None]]:
    """Yield a function that shows the current measurement on stderr, if that is a terminal."""
    if quiet or not sys.stderr.isatty():
        yield lambda text: None
        return
    from rich.console import Console

    with Console(stderr=True).status("starting") as status:
        yield status.update
