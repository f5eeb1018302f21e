"""Write answers into a log. A failure, such as a full disk, is reported once and never breaks an answer."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from threading import Lock

from vl2.answer_log.database import open_log, transaction
from vl2.answer_log.entry import LogEntry


class AnswerLog:
    """A log that is open for writing. Threads may share it."""

    def __init__(self, path: str | Path, warn: Callable[[str], None], *, keeps_bytes: bool = False) -> None:
        """Open the log. Raise UserError if that fails. `warn` gets the message of the first write that fails."""
        self._database = open_log(path)
        self._warn, self._has_warned = warn, False
        self._lock = Lock()
        self.keeps_bytes = keeps_bytes  # entries should have the bytes of their pictures

    def write(self, entry: LogEntry) -> None:
        """Add an answer. Never raise: after a failure the answer is not in the log."""
        try:
            with self._lock, transaction(self._database):
                self._insert(entry)
        except (sqlite3.Error, OSError, ValueError) as error:
            self.warn_once(f"the answer is not in the log: {error}")

    def warn_once(self, message: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            self._warn(message)

    def close(self) -> None:
        with self._lock:
            self._database.close()

    def _insert(self, entry: LogEntry) -> None:
        row = self._database.execute(
            "INSERT INTO answers (time, source, model, conversation, messages, question, answer, finish_reason,"
            " options, prompt_tokens, visual_tokens, completion_tokens, seconds)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                timestamp(time.time()),
                entry.source,
                entry.model,
                entry.conversation,
                _clean(json.dumps(entry.messages(), ensure_ascii=False)),
                _clean(entry.question),
                _clean(entry.answer),
                entry.finish_reason,
                json.dumps(dict(entry.options), ensure_ascii=True, default=str),
                entry.prompt_tokens,
                entry.visual_tokens,
                entry.completion_tokens,
                round(entry.seconds, 3),
            ),
        ).lastrowid
        for place, picture in enumerate(entry.pictures):
            self._database.execute(
                "INSERT INTO pictures (answer_id, place, source, sha256) VALUES (?, ?, ?, ?)",
                (row, place, _clean(picture.source), picture.sha256),
            )
            if picture.content is not None:
                self._database.execute(
                    "INSERT OR IGNORE INTO picture_bytes (sha256, content) VALUES (?, ?)",
                    (picture.sha256, picture.content),
                )


def timestamp(seconds: float) -> str:
    """Return a time in seconds since 1970 as text in UTC, with milliseconds. Texts have the order of their times."""
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _clean(text: str) -> str:
    """Return a text without lone surrogates, which UTF-8 cannot hold."""
    return text.encode("utf-8", "replace").decode("utf-8")
