"""The SQLite file of a log: its tables, its permissions, and a check that it is a log at all.

Several processes may write at the same time: the journal is a write-ahead log, and a writer waits for another up to
`BUSY_S`. The file can be read and written by its owner only.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path

from vl2.errors import UserError
from vl2.files import local_path

APPLICATION_ID = 0x766C324C  # "vl2L", by which SQLite files of this kind are known
VERSION = 1
BUSY_S = 5.0

# Words are found by groups of three characters, which needs no spaces between words and so serves Chinese too.
TABLES = """
CREATE TABLE answers (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    time TEXT NOT NULL, source TEXT NOT NULL, model TEXT NOT NULL, conversation TEXT,
    messages TEXT NOT NULL, question TEXT NOT NULL, answer TEXT NOT NULL, finish_reason TEXT NOT NULL,
    options TEXT NOT NULL, prompt_tokens INTEGER NOT NULL, visual_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL, seconds REAL NOT NULL
);
CREATE INDEX answers_by_time ON answers (time);
CREATE TABLE pictures (
    answer_id INTEGER NOT NULL REFERENCES answers (id) ON DELETE CASCADE,
    place INTEGER NOT NULL, source TEXT NOT NULL, sha256 TEXT,
    PRIMARY KEY (answer_id, place)
);
CREATE INDEX pictures_by_hash ON pictures (sha256);
CREATE TABLE picture_bytes (sha256 TEXT PRIMARY KEY, content BLOB NOT NULL);
CREATE VIRTUAL TABLE answers_text USING fts5 (
    question, answer, content='answers', content_rowid='id', tokenize='trigram'
);
CREATE TRIGGER text_added AFTER INSERT ON answers BEGIN
    INSERT INTO answers_text (rowid, question, answer) VALUES (new.id, new.question, new.answer);
END;
CREATE TRIGGER text_deleted AFTER DELETE ON answers BEGIN
    INSERT INTO answers_text (answers_text, rowid, question, answer)
    VALUES ('delete', old.id, old.question, old.answer);
END;
"""


def open_log(path: str | Path, *, creates: bool = True) -> sqlite3.Connection:
    """Open a log, after creating it if it is new. Raise UserError if it cannot be opened or is something else.

    The connection commits by itself unless a statement begins a transaction. Threads may share it one at a time.
    """
    file = local_path(path)
    try:
        if creates:
            # SQLite gives its own files beside it the same permissions.
            os.close(os.open(file, os.O_RDWR | os.O_CREAT, 0o600))
        mode = file.stat().st_mode
    except OSError as error:
        raise UserError(f"cannot open the log {file}: {error.strerror or error}") from None
    if not stat.S_ISREG(mode):
        raise UserError(f"cannot open the log {file}: it is not a file")
    database: sqlite3.Connection | None = None
    try:
        database = sqlite3.connect(file, timeout=BUSY_S, check_same_thread=False, isolation_level=None)
        _prepare(database, file)
        if stat.S_IMODE(mode) & 0o077:
            file.chmod(0o600)
    except (sqlite3.Error, OSError) as error:
        if database is not None:
            database.close()
        raise UserError(f"cannot open the log {file}: {error}") from None
    except UserError:
        assert database is not None
        database.close()
        raise
    return database


@contextlib.contextmanager
def transaction(database: sqlite3.Connection) -> Iterator[None]:
    """Commit all statements of a block together, or none if one of them fails."""
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        with contextlib.suppress(sqlite3.Error):  # a full disk may have rolled it back already
            database.execute("ROLLBACK")
        raise
    database.execute("COMMIT")


def _prepare(database: sqlite3.Connection, file: Path) -> None:
    """Create the tables of a new log. Raise UserError for a database of another program or a later version."""
    (has_tables,) = database.execute("SELECT count(*) FROM sqlite_master").fetchone()
    (kind,) = database.execute("PRAGMA application_id").fetchone()
    if has_tables and kind != APPLICATION_ID:
        raise UserError(f"{file} is a database of another program: name another file for the log")
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if version > VERSION:
        raise UserError(f"the log {file} was written by a later version of vl2 (its format is {version})")
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = NORMAL")
    database.execute("PRAGMA foreign_keys = ON")
    database.execute("PRAGMA secure_delete = ON")
    if has_tables:
        return
    with transaction(database):
        (has_tables,) = database.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if has_tables:  # another process was faster
            return
        for statement in _statements(TABLES):
            database.execute(statement)
        database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        database.execute(f"PRAGMA user_version = {VERSION}")


def _statements(script: str) -> Iterator[str]:
    """Yield the statements of a script. (`executescript` would commit the transaction that is open.)"""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
