"""The command `vl2 chat`, a conversation in the terminal with streamed answers."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shlex
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from vl2.cli.answer import print_stream
from vl2.cli.flags import (
    GenerateFlags,
    Images,
    ModelFlags,
    OptionalText,
    OutputFlags,
    check_answer_length,
    open_images,
    option_fields,
    print_json,
)
from vl2.cli.log_flags import CommandLog, LogFlags
from vl2.errors import UserError
from vl2.files import is_url, local_path

if TYPE_CHECKING:
    from PIL import Image

    from vl2.infer.sampling import GenerateOptions
    from vl2.infer.session import Session

HELP = """/image PATH   attach an image (path or URL) to the next question; again for more
/clear        forget the conversation and the attached images
/save FILE    write the conversation as JSON
/help         this list
/exit         leave (also Ctrl-D)
Ctrl-C stops an answer."""


@dataclass(frozen=True, kw_only=True)
class Chat:
    """Talk with the model; questions may carry images.

    Examples:
      vl2 chat -i examples/scene.png
      vl2 chat -i page.png --model tiny --temperature 0.4
    """

    images: Images = ()
    """attached to the first question: path or URL"""
    system: OptionalText = None
    """system prompt"""
    model: ModelFlags = field(default_factory=ModelFlags)
    generate: GenerateFlags = field(default_factory=GenerateFlags)
    output: OutputFlags = field(default_factory=OutputFlags)
    log: LogFlags = field(default_factory=LogFlags)

    def run(self) -> None:
        if "-" in self.images:
            raise UserError("chat reads questions from stdin: an image must be a path or URL")
        images = open_images(self.images)
        options = self.generate.options()
        log = self.log.start("chat", self.model.model)
        check_answer_length(self.model, self.generate, quiet=self.output.quiet)
        vlm = self.model.load(quiet=self.output.quiet)
        if sys.stdin is None:
            raise UserError("chat reads questions from stdin, and there is none")
        is_terminal = sys.stdin.isatty()
        if not is_terminal and isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(encoding="utf-8", errors="strict")
        loop = ChatLoop(
            vlm.session(system=self.system),
            options,
            as_json=self.output.json,
            stops_on_interrupt=not is_terminal,
            log=log,
        )
        for name, image in zip(self.images, images, strict=True):
            loop.attach(name, image)
        if is_terminal and not self.output.quiet:
            print("Ask something; /image PATH attaches an image, /help lists the commands.", file=sys.stderr)
        with remembered_input() as read_line:
            loop.run(read_line)


class ChatLoop:
    """The loop of a chat. Each input line is a command or a question."""

    def __init__(
        self,
        session: Session,
        options: GenerateOptions,
        *,
        as_json: bool = False,
        stops_on_interrupt: bool = False,
        log: CommandLog | None = None,
    ) -> None:
        self._session = session
        self._options = options
        self._as_json = as_json
        self._stops_on_interrupt = stops_on_interrupt  # Ctrl-C ends a script; on a terminal it only stops the answer
        self._log, self._conversation = log, uuid.uuid4().hex
        self._attached: list[Image.Image] = []
        self._names: dict[int, str] = {}  # id() of each image in the conversation -> its name, for /save

    def run(self, read_line: Callable[[], str]) -> None:
        """Read lines until the end of input or /exit."""
        while True:
            try:
                line = read_line()
            except EOFError:
                return
            except KeyboardInterrupt:
                if self._stops_on_interrupt:
                    raise
                print(file=sys.stderr)
                continue
            except UnicodeDecodeError:
                raise UserError("the questions on stdin are not text (UTF-8)") from None
            try:
                if not self.handle(line):
                    return
            except UserError as error:
                print(f"vl2: {error}", file=sys.stderr)

    def handle(self, line: str) -> bool:
        """Execute one input line. Return False to end the loop. If it raises UserError, nothing has changed."""
        line = line.strip()
        command, _, argument = line.partition(" ")
        argument = argument.strip()
        if not line:
            return True
        if command in ("/exit", "/quit"):
            return False
        if command == "/help":
            print(HELP, file=sys.stderr)
        elif command == "/image":
            self._attach(argument)
        elif command == "/clear":
            self._session.clear()
            self._conversation = uuid.uuid4().hex
            self._attached.clear()
            self._names.clear()
            print("cleared", file=sys.stderr)
        elif command == "/save":
            self._save(argument)
        elif command.startswith("/") and "/" not in command[1:]:
            raise UserError(f"no command {command}: use /image, /clear, /save, /help or /exit")
        else:
            self._ask(line)
        return True

    def attach(self, name: str, image: Image.Image) -> None:
        """Attach an opened image to the next question, so that later turns do not depend on its file."""
        self._attached.append(image)
        self._names[id(image)] = name

    def _attach(self, typed: str) -> None:
        if not typed:
            raise UserError("/image needs a path or URL")
        if typed == "-":
            raise UserError("/image needs a path or URL: stdin is where you type")
        name = as_path(typed)
        (image,) = open_images([name])
        self.attach(name, image)
        print(f"attached {name} ({image.width} x {image.height})", file=sys.stderr)

    def _ask(self, question: str) -> None:
        # The session keeps a stopped turn if a part of its answer was generated. Only then are its images used up.
        before = len(self._session.messages)
        if self._log is not None:
            self._log.begin()
        try:
            if self._as_json:
                reply = self._session.ask(question, self._attached, **option_fields(self._options))
                print_json(reply.to_dict(), indent=None)
            else:
                self._print_answer(question)
        except KeyboardInterrupt:
            if self._stops_on_interrupt:
                raise
            print("[stopped]", file=sys.stderr)
        if len(self._session.messages) > before:
            self._attached = []
            self._write_log()

    def _write_log(self) -> None:
        if self._log is None or (reply := self._session.reply) is None:
            return
        turns = self._session.turns[:-1]
        names = [self._names.get(id(source), "") for turn in turns for source in turn.images]
        options = option_fields(self._options)
        self._log.add(turns, reply, options, names=names, conversation=self._conversation)

    def _print_answer(self, question: str) -> None:
        pieces = self._session.stream(question, self._attached, **option_fields(self._options))
        try:
            with contextlib.closing(pieces):  # type: ignore[type-var]
                print_stream(pieces)
        except KeyboardInterrupt:
            print(flush=True)
            raise

    def _save(self, name: str) -> None:
        if not name:
            raise UserError("/save needs a file name")
        content = json.dumps({"messages": self._session.messages}, indent=2, ensure_ascii=False, default=self._name_of)
        written = f"{content}\n".encode("utf-8", "replace")  # encoded before the file is opened and emptied
        try:
            local_path(name).write_bytes(written)
        except OSError as error:
            raise UserError(f"cannot write {name}: {error.strerror or error}") from None
        print(f"saved {name}", file=sys.stderr)

    def _name_of(self, image: object) -> str:
        return self._names[id(image)]


def as_path(typed: str) -> str:
    """Interpret a typed path like a shell: expand "~", and remove the quotes and backslashes of a dropped file."""
    if is_url(typed) or os.path.exists(typed):
        return typed
    with contextlib.suppress(ValueError):  # an unmatched quote
        words = shlex.split(typed)
        typed = words[0] if len(words) == 1 else typed
    return str(local_path(typed)) if typed.startswith("~") else typed


@contextlib.contextmanager
def remembered_input() -> Iterator[Callable[[], str]]:
    """Yield a function that reads one line, on a terminal with line editing and a history that is kept on disk."""
    if not sys.stdin.isatty():
        yield input
        return
    if not sys.stdout.isatty():  # the prompt must not mix with the answers
        yield _prompted_on_stderr
        return
    try:
        import readline
    except ImportError:  # not part of Python on Windows
        yield _prompted
        return
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "vl2"
    history = state / "chat_history"
    with contextlib.suppress(OSError):
        readline.read_history_file(history)
    readline.set_history_length(1000)
    try:
        yield _prompted
    finally:
        with contextlib.suppress(OSError):
            state.mkdir(parents=True, exist_ok=True)
            readline.write_history_file(history)


def _prompted() -> str:
    try:
        return input("> ")
    except EOFError:
        print(file=sys.stderr)  # after Ctrl-D the cursor is still on the line of the prompt
        raise


def _prompted_on_stderr() -> str:
    print("> ", end="", file=sys.stderr, flush=True)
    return input()
