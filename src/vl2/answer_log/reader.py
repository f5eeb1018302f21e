"""Read a log, search it, and remove answers from it."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vl2.answer_log.database import open_log, transaction
from vl2.errors import UserError

_COLUMNS = (
    "id, time, source, model, conversation, messages, question, answer, finish_reason, options, prompt_tokens,"
    " visual_tokens, completion_tokens, seconds"
)
_SHORTEST_INDEXED = 3  # characters of a word that the index finds


@dataclass(frozen=True, kw_only=True)
class LoggedAnswer:
    """One answer of a log."""

    id: int
    time: str  # in UTC
    source: str
    model: str
    conversation: str | None
    messages: list[dict[str, Any]]
    question: str
    answer: str
    finish_reason: str
    options: dict[str, Any]
    prompt_tokens: int
    visual_tokens: int
    completion_tokens: int
    seconds: float
    pictures: list[dict[str, Any]]  # each with "source" and "sha256"

    def to_dict(self) -> dict[str, Any]:
        return dict(vars(self))


class LogReader:
    """A log that is open for reading and removing. Every method raises UserError if SQLite cannot do its work."""

    def __init__(self, path: str | Path) -> None:
        """Open an existing log. Raise UserError if there is none."""
        self._path = Path(path)
        self._database = open_log(path, creates=False)

    def close(self) -> None:
        self._database.close()

    def latest(self, limit: int | None = None) -> list[LoggedAnswer]:
        """Return the last answers, the newest first."""
        return self._read("1", (), limit)

    def search(self, words: str, limit: int | None = None) -> list[LoggedAnswer]:
        """Return the answers that have every word in their question or answer, the newest first.

        Case does not matter. A word may be a part of a longer one.
        """
        terms = words.split()
        if not terms:
            raise UserError("there is nothing to search for: give at least one word")
        conditions, values = [], []
        indexed = [term for term in terms if len(term) >= _SHORTEST_INDEXED]
        if indexed:
            conditions.append("id IN (SELECT rowid FROM answers_text WHERE answers_text MATCH ?)")
            values.append(" ".join('"' + term.replace('"', '""') + '"' for term in indexed))
        for term in terms:
            if len(term) < _SHORTEST_INDEXED:
                conditions.append("(instr(lower(question), lower(?)) OR instr(lower(answer), lower(?)))")
                values += [term, term]
        return self._read(" AND ".join(conditions), values, limit)

    def get(self, answer_id: int) -> LoggedAnswer:
        """Return one answer. Raise UserError if there is none of this id."""
        found = self._read("id = ?", (answer_id,), None)
        if not found:
            raise UserError(f"the log has no answer {answer_id}")
        return found[0]

    def oldest_first(self) -> Iterator[LoggedAnswer]:
        """Yield all answers, some at a time."""
        last = 0
        while True:
            some = self._read("id > ?", (last,), 200, order="id")
            yield from some
            if not some:
                return
            last = some[-1].id

    def picture(self, sha256: str) -> bytes | None:
        """Return the bytes of a picture, None if the log does not have them."""
        row = self._run("SELECT content FROM picture_bytes WHERE sha256 = ?", (sha256,)).fetchone()
        return None if row is None else bytes(row[0])

    @property
    def num_answers(self) -> int:
        return int(self._run("SELECT count(*) FROM answers").fetchone()[0])

    @property
    def num_bytes(self) -> int:
        """The size of the database, without its journal."""
        (pages,), (size,) = (self._run(f"PRAGMA {name}").fetchone() for name in ("page_count", "page_size"))
        return int(pages) * int(size)

    def delete(self, ids: Sequence[int]) -> None:
        """Remove answers, and the pictures that no other answer has. Raise UserError if one does not exist."""
        for answer_id in ids:
            self.get(answer_id)
        self._remove("id IN (SELECT value FROM json_each(?))", (json.dumps(list(ids)),))

    def prune(self, *, before: str | None = None, max_bytes: int | None = None) -> int:
        """Remove the answers before a time, then the oldest until the file is small enough. Return their number.

        `before` is a text as `vl2.answer_log.writer.timestamp` makes it.
        """
        num_before = self.num_answers
        if before is not None:
            self._remove("time < ?", (before,))
        while max_bytes is not None and self.num_bytes > max_bytes and (count := self.num_answers):
            share = max(0.05, 1 - max_bytes / self.num_bytes)
            oldest = "id IN (SELECT id FROM answers ORDER BY id LIMIT ?)"
            self._remove(oldest, (max(1, int(count * share)),))
        return num_before - self.num_answers

    def _remove(self, condition: str, values: Sequence[object]) -> None:
        try:
            with transaction(self._database):
                self._database.execute(f"DELETE FROM answers WHERE {condition}", values)
                self._database.execute(
                    "DELETE FROM picture_bytes WHERE sha256 NOT IN"
                    " (SELECT sha256 FROM pictures WHERE sha256 IS NOT NULL)"
                )
                # The index keeps deleted text until its parts are merged, so it is built again.
                self._database.execute("INSERT INTO answers_text (answers_text) VALUES ('rebuild')")
            self._database.execute("VACUUM")
            self._database.execute("PRAGMA wal_checkpoint (TRUNCATE)")
        except sqlite3.Error as error:
            raise self._error(error) from None

    def _read(
        self, condition: str, values: Sequence[object], limit: int | None, order: str = "id DESC"
    ) -> list[LoggedAnswer]:
        rows = self._run(
            f"SELECT {_COLUMNS} FROM answers WHERE {condition} ORDER BY {order} LIMIT ?",
            (*values, -1 if limit is None else limit),
        ).fetchall()
        return [self._answer(row) for row in rows]

    def _answer(self, row: tuple[Any, ...]) -> LoggedAnswer:
        fields = dict(zip(_COLUMNS.replace(" ", "").split(","), row, strict=True))
        pictures = self._run(
            "SELECT source, sha256 FROM pictures WHERE answer_id = ? ORDER BY place", (fields["id"],)
        ).fetchall()
        decoded = {name: json.loads(fields[name]) for name in ("messages", "options")}
        named = [{"source": source, "sha256": digest} for source, digest in pictures]
        return LoggedAnswer(**{**fields, **decoded, "pictures": named})

    def _run(self, statement: str, values: Sequence[object] = ()) -> sqlite3.Cursor:
        try:
            return self._database.execute(statement, values)
        except sqlite3.Error as error:
            raise self._error(error) from None

    def _error(self, error: sqlite3.Error) -> UserError:
        return UserError(f"cannot use the log {self._path}: {error}")
