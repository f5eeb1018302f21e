"""Parse a command line to one command, and say in one line what is wrong with it."""

from __future__ import annotations

import contextlib
import difflib
import inspect
import io
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Protocol, Union

import tyro

from vl2.cli.ask import Ask, Describe
from vl2.cli.batch import Batch
from vl2.cli.bench import Bench
from vl2.cli.chat import Chat
from vl2.cli.data import DATA_COMMANDS, Data
from vl2.cli.eval import EVAL_COMMANDS, Eval
from vl2.cli.finetune import Finetune
from vl2.cli.inspect import Inspect
from vl2.cli.locate import Locate
from vl2.cli.plan import Plan
from vl2.cli.quantize import Quantize
from vl2.cli.read import Read
from vl2.cli.serve import Serve
from vl2.cli.train import TRAIN_COMMANDS, Train
from vl2.cli.verify import Verify


class Command(Protocol):
    """A parsed command line: a record of its arguments that can be run."""

    def run(self) -> None: ...


COMMANDS: dict[str, type[Command]] = {
    "ask": Ask,
    "chat": Chat,
    "describe": Describe,
    "locate": Locate,
    "read": Read,
    "batch": Batch,
    "serve": Serve,
    "inspect": Inspect,
    "verify": Verify,
    "bench": Bench,
    "quantize": Quantize,
    "data": Data,
    "eval": Eval,
    "train": Train,
    "finetune": Finetune,
    "plan": Plan,
}
# The commands of a group, named by two words.
GROUPS: dict[str, Mapping[str, type[Command]]] = {
    "data": DATA_COMMANDS,
    "eval": EVAL_COMMANDS,
    "train": TRAIN_COMMANDS,
}
# Commands whose options depend on a file that the line names, and which therefore read the line themselves.
READERS: Mapping[str, Callable[[Sequence[str]], Command]] = {"train": Train.read}

DESCRIPTION = """DeepSeek-VL2: ask about images, documents and screens, and locate things in them.

Examples:
  vl2 ask "What value does the chart show for Oslo?" -i examples/bars.png
  vl2 locate "green house" -i examples/scene.png --draw boxes.png
  vl2 chat --model tiny
  vl2 inspect examples/scene.png

The built-in model answers short questions about simple pictures, such as those in examples/; --model tiny, small or
base downloads a released one. `vl2 COMMAND --help` says more."""


def parse(arguments: Sequence[str]) -> Command:
    """Return the command of a command line. SystemExit after printing help, or what is wrong."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return _cli(list(arguments) or ["--help"])
    except SystemExit as stop:
        if stop.code:
            print(f"vl2: {usage_error(said.getvalue(), arguments)}", file=sys.stderr)
        raise


def _cli(arguments: list[str]) -> Command:
    config = (tyro.conf.FlagCreatePairsOff, tyro.conf.OmitSubcommandPrefixes, tyro.conf.OmitArgPrefixes)
    words, kind = _command(arguments)
    if kind is not None:
        # The whole docstring is given, because the parser by itself drops the examples.
        prog, description = " ".join(("vl2", *words)), inspect.getdoc(kind)
        rest = arguments[len(words) :] or (["--help"] if words[0] in GROUPS and len(words) == 1 else [])
        if len(words) == 1 and words[0] in READERS:
            return READERS[words[0]](rest)
        return tyro.cli(kind, prog=prog, description=description, args=rest, config=config)
    every: Any = Union[tuple(Annotated[kind, tyro.conf.subcommand(name)] for name, kind in COMMANDS.items())]  # noqa: UP007
    chosen: Command = tyro.cli(every, prog="vl2", description=DESCRIPTION, args=arguments, config=config)
    return chosen


def _command(arguments: Sequence[str]) -> tuple[list[str], type[Command] | None]:
    """Return the words that name the command, and the command; no words and None if there is none."""
    first, second = [*arguments[:2], "", ""][:2]
    if second in GROUPS.get(first, {}):
        return [first, second], GROUPS[first][second]
    return ([first], COMMANDS[first]) if first in COMMANDS else ([], None)


def usage_error(boxed: str, arguments: Sequence[str]) -> str:
    """Make one line of the box that the argument parser prints: the fault, and the nearest name if there is one."""
    # The box is drawn with line characters, or in ASCII where the output has no others. Its first line is a title.
    lines = [re.sub(r"^[│|]|[│|]$", "", line.strip()).strip() for line in boxed.splitlines()[1:]]
    blocks = re.split(r"^[╰+]?[─-]{3,}[╯+]?$", "\n".join(lines), flags=re.MULTILINE)
    first, *others = [block.strip().splitlines() for block in blocks if block.strip()] or [
        ["the arguments are not valid"]
    ]
    fault = " ".join(first)
    words, _ = _command(arguments)
    is_group = words in [[group] for group in GROUPS]
    commands = GROUPS[words[0]] if is_group else COMMANDS
    if fault.startswith("Missing from"):
        fault = f"{first[1]} is missing"
    elif fault.startswith("Unrecognized options:"):
        # The parser counts the value of an unknown option as another one.
        unknown = fault.partition(":")[2].strip().split(", ")
        name = next((word for word in unknown if word.startswith("-")), unknown[0])
        lines = [line.strip() for block in others for line in block]
        known = [word for line in lines if line.startswith("-") for word in re.findall(r"--[\w.-]+", line)]
        near = difflib.get_close_matches(name, known if name.startswith("-") else commands, n=1)
        what = "option" if name.startswith("-") else "argument" if words and not is_group else "command"
        fault = f"unknown {what} {name}" + (f" (did you mean {near[0]}?)" if near else "")
    fault = fault.replace(". Expected 1 values.", ": one is needed")
    return f"{fault}; `{' '.join(('vl2', *words))} --help` shows what is allowed"
