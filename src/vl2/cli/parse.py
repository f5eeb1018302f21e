"""Parse a command line to one command, and report a usage error in one line."""

from __future__ import annotations

import contextlib
import difflib
import inspect
import io
import re
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Protocol, Union

import tyro

from vl2.cli.ask import Ask, Describe
from vl2.cli.assemble import Assemble
from vl2.cli.batch import Batch
from vl2.cli.bench import Bench
from vl2.cli.chat import Chat
from vl2.cli.completion import Completion
from vl2.cli.data import DATA_COMMANDS, Data
from vl2.cli.eval import EVAL_COMMANDS, Eval
from vl2.cli.extract import Extract
from vl2.cli.finetune import Finetune
from vl2.cli.help_text import columns, described, wrapped
from vl2.cli.inspect import Inspect
from vl2.cli.locate import Locate
from vl2.cli.log import LOG_COMMANDS, Log
from vl2.cli.mcp import Mcp
from vl2.cli.models import MODELS_COMMANDS, Models, ModelsList
from vl2.cli.plan import Plan
from vl2.cli.quantize import Quantize
from vl2.cli.read import Read
from vl2.cli.serve import Serve
from vl2.cli.train import TRAIN_COMMANDS, Train
from vl2.cli.verify import Verify


class Command(Protocol):
    """A parsed command line: a dataclass of its arguments with a `run` method."""

    def run(self) -> None: ...


# In the order and under the headings of `vl2 --help`.
SECTIONS: dict[str, dict[str, type[Command]]] = {
    "Use": {
        "ask": Ask,
        "chat": Chat,
        "describe": Describe,
        "locate": Locate,
        "read": Read,
        "extract": Extract,
        "batch": Batch,
        "serve": Serve,
        "mcp": Mcp,
        "log": Log,
    },
    "Models": {
        "models": Models,
        "inspect": Inspect,
        "quantize": Quantize,
        "verify": Verify,
    },
    "Train": {
        "finetune": Finetune,
        "data": Data,
        "assemble": Assemble,
        "train": Train,
        "plan": Plan,
    },
    "Measure": {
        "eval": Eval,
        "bench": Bench,
    },
    "Shell": {
        "completion": Completion,
    },
}
COMMANDS = {name: kind for section in SECTIONS.values() for name, kind in section.items()}
# Groups of commands with two-word names.
GROUPS: dict[str, Mapping[str, type[Command]]] = {
    "data": DATA_COMMANDS,
    "eval": EVAL_COMMANDS,
    "log": LOG_COMMANDS,
    "models": MODELS_COMMANDS,
    "train": TRAIN_COMMANDS,
}
# The command of a group that runs if no second word follows. Other groups print their help.
DEFAULTS: Mapping[str, type[Command]] = {"models": ModelsList}
# Commands that parse their own arguments, because their options depend on a file that the command line names.
READERS: Mapping[str, Callable[[Sequence[str]], Command]] = {"train": Train.read}

DESCRIPTION = """DeepSeek-VL2: ask about images, documents and screens, and locate things in them.

Examples:
  vl2 ask "What value does the chart show for Oslo?" -i examples/bars.png
  vl2 locate "green house" -i examples/scene.png --draw boxes.png
  vl2 chat --model tiny
  vl2 models

The built-in model answers short questions about simple pictures, such as those in examples/.
`--model tiny`, `small` or `base` takes a released model, and downloads it the first time."""
MORE = "`vl2 COMMAND --help` shows the options of a command, with examples. `vl2 --version` prints the version."


def parse(arguments: Sequence[str]) -> Command:
    """Return the command of a command line. Raise SystemExit after printing help or a usage error."""
    message = io.StringIO()
    try:
        with contextlib.redirect_stderr(message):
            return _cli(list(arguments) or ["--help"])
    except SystemExit as stop:
        if stop.code:
            print(f"vl2: {usage_error(message.getvalue(), arguments)}", file=sys.stderr)
        raise


def _cli(arguments: list[str]) -> Command:
    if arguments[0] in ("-h", "--help"):
        print(overview())
        raise SystemExit(0)
    words, kind = _command(arguments)
    if kind is None:
        return parse_any(arguments)
    rest = arguments[len(words) :]
    if words[0] in GROUPS and kind is COMMANDS[words[0]] and words[0] not in READERS and {*rest} <= {"-h", "--help"}:
        print(group_overview(words[0]))
        raise SystemExit(0)
    with described(inspect.getdoc(kind) or ""):
        if len(words) == 1 and words[0] in READERS:
            return READERS[words[0]](rest or ["--help"])
        config = (tyro.conf.FlagCreatePairsOff, tyro.conf.OmitSubcommandPrefixes, tyro.conf.OmitArgPrefixes)
        return tyro.cli(kind, prog=" ".join(("vl2", *words)), description="", args=rest, config=config)


def parse_any(arguments: list[str]) -> Command:
    """Parse a line with all commands in one parser: for lines that name none, and for scripts of completion."""

    def subcommand(name: str, kind: type[Command]) -> Any:
        # A command that reads its own line has options with prefixes, as --run.minutes.
        marked = kind if name in READERS else Annotated[kind, tyro.conf.OmitArgPrefixes]
        return Annotated[marked, tyro.conf.subcommand(name)]

    every: Any = Union[tuple(subcommand(name, kind) for name, kind in COMMANDS.items())]  # noqa: UP007
    config = (tyro.conf.FlagCreatePairsOff, tyro.conf.OmitSubcommandPrefixes)
    chosen: Command = tyro.cli(every, prog="vl2", args=arguments, config=config)
    return chosen


def overview() -> str:
    """Return what `vl2 --help` prints: examples, then every command under its heading."""
    sections = [_listed(heading, commands) for heading, commands in SECTIONS.items()]
    return "\n\n".join(["usage: vl2 COMMAND [OPTIONS]", wrapped(DESCRIPTION), *sections, wrapped(MORE)])


def group_overview(group: str) -> str:
    """Return what the help of a group prints: its docstring with examples, then its commands."""
    about = wrapped(inspect.getdoc(COMMANDS[group]) or "")
    return "\n\n".join([f"usage: vl2 {group} COMMAND [OPTIONS]", about, _listed("Commands", GROUPS[group])])


def _listed(heading: str, commands: Mapping[str, type[Command]]) -> str:
    """Return commands with the first sentence of each, in a line or two."""
    width = max(map(len, COMMANDS))
    lines = [heading]
    for name, kind in commands.items():
        first = (inspect.getdoc(kind) or "").partition("\n\n")[0].partition(". ")[0]
        said = f"  {name:<{width}}  {first.rstrip('.')}"
        lines.append(textwrap.fill(said, columns(), subsequent_indent=" " * (width + 4)))
    return "\n".join(lines)


def _command(arguments: Sequence[str]) -> tuple[list[str], type[Command] | None]:
    """Return the words that name the command and its class, or ([], None) if they name none."""
    first, second = [*arguments[:2], "", ""][:2]
    if second in GROUPS.get(first, {}):
        return [first, second], GROUPS[first][second]
    if first in DEFAULTS and (not second or second.startswith("-")) and second not in ("-h", "--help"):
        return [first], DEFAULTS[first]
    return ([first], COMMANDS[first]) if first in COMMANDS else ([], None)


def usage_error(boxed: str, arguments: Sequence[str]) -> str:
    """Reduce the boxed error message of tyro to one line: the error, and the closest name if there is one."""
    # The box is drawn with Unicode or ASCII characters, depending on the output's encoding. Its first line is a title.
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
        # Tyro reports the value of an unknown option as another unknown option.
        unknown = fault.partition(":")[2].strip().split(", ")
        name = next((word for word in unknown if word.startswith("-")), unknown[0])
        lines = [line.strip() for block in others for line in block]
        known = [word for line in lines if line.startswith("-") for word in re.findall(r"--[\w.-]+", line)]
        near = difflib.get_close_matches(name, known if name.startswith("-") else commands, n=1, cutoff=0.65)
        what = "option" if name.startswith("-") else "argument" if words and not is_group else "command"
        fault = f"unknown {what} {name}" + (f" (did you mean {near[0]}?)" if near else "")
    fault = fault.replace(". Expected 1 values.", ": one is needed")
    return f"{fault}; `{' '.join(('vl2', *words))} --help` shows what is allowed"
