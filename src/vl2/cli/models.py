"""The commands `vl2 models`, which lists checkpoints on this machine, and `vl2 models remove`, which deletes them."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import tyro

from vl2.cli.flags import print_json
from vl2.errors import UserError

if TYPE_CHECKING:
    from vl2.checkpoint.cached import CachedCheckpoint
    from vl2.config import ModelConfig

SHOWN = ("bfloat16", "int8", "int4")  # weight formats that have a column in every table


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A model that can be given by name to `--model`."""

    name: str
    hub_id: str | None  # None for the built-in model
    place: Path | None  # its folder in the hub's cache, or the built-in folder; None if it is not on this machine
    folder: Path | None  # the checkpoint folder that is loaded
    bytes_on_disk: int
    is_complete: bool
    commits: tuple[str, ...]
    memory: dict[str, int]  # weight format -> bytes needed in all for a full context

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "hub_id": self.hub_id,
            "folder": None if self.folder is None else str(self.folder),
            "bytes_on_disk": self.bytes_on_disk,
            "is_complete": self.is_complete,
            "commits": list(self.commits),
            "memory": self.memory,
        }


@dataclass(frozen=True, kw_only=True)
class ModelsList:
    """List the models by the names that --model takes: size on disk, memory needed, and where they lie.

    Examples:
      vl2 models list
      vl2 models list --json
    """

    json: bool = False
    """print JSON instead of tables"""

    def run(self) -> None:
        listed = list_models()
        if self.json:
            print_json([model.to_dict() for model in listed])
        else:
            print_models(listed, sys.stdout)


@dataclass(frozen=True, kw_only=True)
class ModelsRemove:
    """Delete a downloaded checkpoint from the hub's cache, with all of its revisions. Other models are refused.

    Examples:
      vl2 models remove tiny
      vl2 models remove deepseek-ai/deepseek-vl2-small --yes
    """

    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
    """tiny, small, base or a hub id, as `vl2 models` lists them"""
    yes: bool = False
    """do not ask"""

    def run(self) -> None:
        from vl2.checkpoint.cached import delete_cached, find_cached
        from vl2.checkpoint.resolve import BUILT_IN
        from vl2.cli.memory_report import size_text

        if self.name == BUILT_IN:
            raise UserError(f"{BUILT_IN} is part of this package: only a downloaded checkpoint can be removed")
        found = find_cached(self.name)
        freed = size_text(found.bytes_on_disk)
        revisions = "1 revision" if len(found.commits) == 1 else f"{len(found.commits)} revisions"
        print(f"vl2: {found.hub_id}, {revisions}, {freed}, in {found.repo_folder}", file=sys.stderr)
        if not self.yes:
            _confirm(f"vl2: delete it and free {freed}? [y/N] ")
        delete_cached(found)
        print(f"vl2: deleted {found.hub_id}: {freed} freed", file=sys.stderr)


MODELS_COMMANDS = {"list": ModelsList, "remove": ModelsRemove}


@dataclass(frozen=True, kw_only=True)
class Models:
    """List the models on this machine, or remove a downloaded one. Without a word more it lists them.

    Examples:
      vl2 models
      vl2 models --json
      vl2 models remove tiny

    `vl2 models COMMAND --help` says more.
    """

    command: (
        Annotated[ModelsList, tyro.conf.subcommand("list")] | Annotated[ModelsRemove, tyro.conf.subcommand("remove")]
    )

    def run(self) -> None:
        self.command.run()


def _confirm(question: str) -> None:
    """Ask for confirmation on the terminal. Raise UserError unless the answer is yes."""
    if sys.stdin is None or not sys.stdin.isatty():
        raise UserError("nothing was deleted: --yes deletes without asking, where nobody can answer")
    print(question, end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise UserError("nothing was deleted")


def list_models() -> list[Listed]:
    """Return the built-in model, the other models in the cache, and the released sizes that are not downloaded."""
    from vl2.checkpoint.cached import cached_checkpoints
    from vl2.checkpoint.resolve import BUILT_IN, RELEASED, built_in_folder
    from vl2.config import preset

    folder = built_in_folder()
    size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    built_in = Listed(
        name=BUILT_IN,
        hub_id=None,
        place=folder,
        folder=folder,
        bytes_on_disk=size,
        is_complete=True,
        commits=(),
        memory=_memory_of(preset(BUILT_IN), None),
    )
    cached = {checkpoint.name: checkpoint for checkpoint in cached_checkpoints()}
    absent = [
        Listed(
            name=name,
            hub_id=hub_id,
            place=None,
            folder=None,
            bytes_on_disk=0,
            is_complete=False,
            commits=(),
            memory=_memory_of(preset(name), None),
        )
        for name, hub_id in RELEASED.items()
        if name not in cached
    ]
    return [built_in, *map(_listed, cached.values()), *absent]


def _listed(checkpoint: CachedCheckpoint) -> Listed:
    from vl2.config import ModelConfig

    try:
        memory = _memory_of(ModelConfig.from_file(checkpoint.folder / "config.json"), checkpoint.folder)
    except UserError:  # a checkpoint with a damaged config.json is listed too, so that it can be removed
        memory = {}
    return Listed(
        name=checkpoint.name,
        hub_id=checkpoint.hub_id,
        place=checkpoint.repo_folder,
        folder=checkpoint.folder,
        bytes_on_disk=checkpoint.bytes_on_disk,
        is_complete=checkpoint.is_complete,
        commits=checkpoint.commits,
        memory=memory,
    )


def _memory_of(config: ModelConfig, folder: Path | None) -> dict[str, int]:
    """Return the memory needed for each weight format, or for the format of the files if they are quantized."""
    from vl2.checkpoint.memory_plan import FORMATS, MemoryPlan
    from vl2.checkpoint.quantization_config import QuantizationConfig
    from vl2.quant.quantize_model import Scheme

    record = None if folder is None else QuantizationConfig.of(config, folder)
    forms: tuple[str | Scheme, ...] = FORMATS if record is None else (record.scheme,)
    plans = [MemoryPlan.of(config, form, config.language_config.max_position_embeddings) for form in forms]
    return {plan.weights: plan.total for plan in plans}


def print_models(listed: list[Listed], file: TextIO) -> None:
    """Print the models with their sizes, memory and folders, and the memory of this machine."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from vl2.checkpoint.machine_memory import MachineMemory
    from vl2.cli.memory_report import gigabytes, size_text

    others = sorted({form for model in listed for form in model.memory} - {*SHOWN, "float32"})
    table = Table("--model", "on disk", *SHOWN, *others, box=SIMPLE_HEAD)
    for column in table.columns[1:]:
        column.justify = "right"
    for model in listed:
        on_disk = size_text(model.bytes_on_disk) if model.place else "-"
        if model.place and not model.is_complete:
            on_disk += ", incomplete"
        memory = [size_text(model.memory[form]) if form in model.memory else "-" for form in (*SHOWN, *others)]
        table.add_row(model.name, on_disk, *memory)
    names = max(len(model.name) for model in listed)
    console = Console(file=file, highlight=False, width=max(80, names + 12 * (2 + len(SHOWN) + len(others))))
    with console.capture() as captured:
        console.print(table)
    print("\n".join(line.rstrip() for line in captured.get().splitlines() if line.strip()), end="\n\n", file=file)
    print("The memory is what an answer with a full context takes, by the format of the weights.", file=file)
    width = min(12, max(len(model.name) for model in listed))
    for model in listed:
        if model.place is not None:
            where = f"{model.hub_id} in {model.place}" if model.hub_id else f"built in, {model.place}"
            print(f"{model.name:<{width}}  {where}", file=file)
    absent = [model.name for model in listed if model.place is None]
    if absent:
        print(f"Not downloaded: {', '.join(absent)}. The first use downloads: `--model {absent[0]}`.", file=file)
    removable = [model.name for model in listed if model.place is not None and model.hub_id is not None]
    if removable:
        print(f"To free the room of one: `vl2 models remove {removable[0]}`.", file=file)
    now = MachineMemory.now()
    print(f"This machine has {gigabytes(now.total)} of memory, {gigabytes(now.available)} free now.", file=file)
