"""Write the server's answers into a log, in a thread of its own: no answer waits for it, and none fails with it."""

from __future__ import annotations

import concurrent.futures
import logging
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import BoundedSemaphore
from typing import TYPE_CHECKING

from vl2.answer_log.entry import LogEntry, LoggedPicture, log_picture
from vl2.answer_log.writer import AnswerLog
from vl2.infer.sampling import GenerateOptions, changed_options
from vl2.process.conversation import Turn
from vl2.process.tool_calls import call_text
from vl2.serve.telemetry import log

if TYPE_CHECKING:
    from vl2.serve.exchange import AnswerText

MAX_WAITING = 256  # answers that wait to be written; more are not logged
CLOSE_S = 5.0


class ServerLog:
    """The log of a server."""

    def __init__(self, file: str | Path, *, keeps_bytes: bool = False) -> None:
        """Open the log. Raise UserError if that fails."""
        self._log = AnswerLog(file, lambda message: log(message, level=logging.WARNING), keeps_bytes=keeps_bytes)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="vl2-log")
        self._room = BoundedSemaphore(MAX_WAITING)

    def begin(
        self, path: str, model: str, conversations: Sequence[Sequence[Turn]], options: GenerateOptions
    ) -> PendingAnswers:
        """Note a request of one or several answers, each to one of `conversations`, which have the same pictures.

        The pictures are hashed at once, so that their data need not be kept.
        """
        sources = [source for turn in conversations[0] for source in turn.images]
        keeps = self._log.keeps_bytes
        return PendingAnswers(
            path=path,
            model=model,
            conversations=[[turn.map_images(lambda source: "") for turn in turns] for turns in conversations],
            pictures=self._thread.submit(lambda: [log_picture(source, keeps_bytes=keeps) for source in sources]),
            options=options,
            began=time.monotonic(),
        )

    def end(self, pending: PendingAnswers, texts: Sequence[AnswerText]) -> None:
        """Write the answers of a request, finished or canceled, one to each conversation."""
        if not self._room.acquire(blocking=False):
            self._log.warn_once(f"answers are missing in the log: {MAX_WAITING} wait to be written")
            return
        seconds = time.monotonic() - pending.began
        entries = [
            LogEntry(
                source=pending.path,
                model=pending.model,
                turns=turns,
                answer=_whole_text(text),
                finish_reason=text.finish_reason or "cancelled",
                options=changed_options(vars(pending.options)),
                prompt_tokens=len(text.sample),
                visual_tokens=int(text.sample.image_mask.sum()),
                completion_tokens=len(text.token_ids),
                seconds=seconds,
            )
            for turns, text in zip(pending.conversations, texts, strict=True)
        ]
        self._thread.submit(self._write, pending, entries)

    def _write(self, pending: PendingAnswers, entries: Sequence[LogEntry]) -> None:
        try:
            for entry in entries:
                self._log.write(entry.with_pictures(pending.pictures.result()))
        finally:
            self._room.release()

    def close(self) -> None:
        """Write what waits, for a few seconds at most."""
        closed = self._thread.submit(self._log.close)
        self._thread.shutdown(wait=False)
        concurrent.futures.wait([closed], timeout=CLOSE_S)


@dataclass(frozen=True, kw_only=True)
class PendingAnswers:
    """A request whose answers are being generated."""

    path: str
    model: str
    conversations: Sequence[Sequence[Turn]]
    pictures: Future[list[LoggedPicture]]
    options: GenerateOptions
    began: float


def _whole_text(text: AnswerText) -> str:
    calls = [call_text(call.name, call.arguments) for call in text.calls.calls] if text.calls else []
    return "\n".join([text.text, *calls] if text.text else calls)
