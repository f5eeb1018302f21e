"""The flags by which a command keeps its questions and answers in a log, and the entries that it writes."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vl2.cli.flags import OptionalFile
from vl2.errors import UserError

if TYPE_CHECKING:
    from vl2.answer_log.writer import AnswerLog
    from vl2.infer.reply import Reply
    from vl2.process.conversation import Turn

VARIABLE = "VL2_LOG"


def log_file(given: str | None) -> str | None:
    """Return the file of the log: the flag's, or that of the environment variable, or None."""
    return given or os.environ.get(VARIABLE) or None


@dataclass(frozen=True, kw_only=True)
class LogFlags:
    """Where questions and answers are kept."""

    log: OptionalFile = None
    """keep questions and answers in this SQLite file; VL2_LOG by default, and nowhere if that is not set"""
    log_pictures: bool = False
    """keep the pictures in it too, not only their hashes and paths"""

    def check(self) -> None:
        """Raise UserError if pictures are to be kept, but there is no log."""
        if self.log_pictures and log_file(self.log) is None:
            raise UserError(f"--log-pictures needs a log: give --log FILE, or set {VARIABLE}")

    def open(self) -> AnswerLog | None:
        """Return the log, None without one. Raise UserError, before the model is loaded, if it cannot be written."""
        self.check()
        file = log_file(self.log)
        if file is None:
            return None
        from vl2.answer_log.writer import AnswerLog

        return AnswerLog(file, lambda message: print(f"vl2: {message}", file=sys.stderr), keeps_bytes=self.log_pictures)

    def start(self, command: str, model: str) -> CommandLog:
        return CommandLog(self.open(), command, model)


class CommandLog:
    """Writes the answers of one run of a command into a log, if there is one."""

    def __init__(self, log: AnswerLog | None, command: str, model: str) -> None:
        self._log, self._command, self._model = log, command, model
        self._began = time.monotonic()

    def begin(self) -> None:
        """Begin to measure the time of the next answer."""
        self._began = time.monotonic()

    def add(
        self,
        turns: Sequence[Turn],
        reply: Reply,
        options: Mapping[str, Any],
        *,
        names: Sequence[str] = (),
        conversation: str | None = None,
    ) -> None:
        """Write an answer. `names` are the paths or URLs of the images of all turns, as far as they are known."""
        if self._log is None:
            return
        from vl2.answer_log.entry import LogEntry, log_picture
        from vl2.infer.sampling import changed_options

        seconds = time.monotonic() - self._began
        sources = [source for turn in turns for source in turn.images]
        named = [*names, *[""] * len(sources)][: len(sources)]
        self._log.write(
            LogEntry(
                source=self._command,
                model=self._model,
                turns=turns,
                answer=reply.text,
                finish_reason=reply.finish_reason,
                pictures=[
                    log_picture(source, name, keeps_bytes=self._log.keeps_bytes)
                    for source, name in zip(sources, named, strict=True)
                ],
                conversation=conversation,
                options=changed_options(options),
                prompt_tokens=reply.usage.prompt_tokens,
                visual_tokens=reply.usage.visual_tokens,
                completion_tokens=reply.usage.completion_tokens,
                seconds=seconds,
            )
        )
