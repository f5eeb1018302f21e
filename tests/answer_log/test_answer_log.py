"""The log of answers: what is written is read, found, exported and removed, and nothing secret is in the file."""

from __future__ import annotations

import base64
import json
import os
import sqlite3
import stat
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vl2.answer_log.database import open_log
from vl2.answer_log.entry import LogEntry, LoggedPicture, log_picture
from vl2.answer_log.reader import LogReader
from vl2.answer_log.writer import AnswerLog, timestamp
from vl2.errors import UserError
from vl2.process.conversation import ImageRef, Turn

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
needs_modes = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no file modes")


def fail(message: str) -> None:
    raise AssertionError(message)


def entry(question: str = "What is it?", answer: str = "A circle.", **fields: Any) -> LogEntry:
    turns = fields.pop("turns", [Turn(role="user", pieces=(question,))])
    made = {"source": "ask", "model": "nano", "turns": turns, "answer": answer, "finish_reason": "stop"}
    return LogEntry(**{**made, **fields})


def write(path: Path, *entries: LogEntry, keeps_bytes: bool = False) -> None:
    log = AnswerLog(path, fail, keeps_bytes=keeps_bytes)
    for one in entries:
        log.write(one)
    log.close()


def test_what_is_written_is_read(tmp_path: Path) -> None:
    turns = [
        Turn(role="system", pieces=("Be brief.",)),
        Turn(role="user", pieces=(ImageRef(source="a.png"), "What is it?")),
        Turn(role="assistant", pieces=("A circle.",)),
        Turn(role="user", pieces=("Which color?", ImageRef(source="b.png"))),
    ]
    pictures = [LoggedPicture(source="a.png", sha256="0a"), LoggedPicture(source="b.png", sha256=None)]
    numbers = {"prompt_tokens": 9, "visual_tokens": 4, "completion_tokens": 2, "seconds": 1.25}
    began = timestamp(time.time())
    write(tmp_path / "log.db", entry(turns=turns, answer="Red \ud800 红", pictures=pictures, conversation="c",
                                     options={"temperature": 0.5}, **numbers))  # fmt: skip
    (found,) = LogReader(tmp_path / "log.db").latest()
    assert found.to_dict() == {
        "id": 1,
        "time": found.time,
        "source": "ask",
        "model": "nano",
        "conversation": "c",
        "messages": [
            {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
            {"role": "user", "content": [{"type": "image", "image": 0}, {"type": "text", "text": "What is it?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "A circle."}]},
            {"role": "user", "content": [{"type": "text", "text": "Which color?"}, {"type": "image", "image": 1}]},
        ],
        "question": "Which color?",
        "answer": "Red ? 红",
        "finish_reason": "stop",
        "options": {"temperature": 0.5},
        **numbers,
        "pictures": [{"source": "a.png", "sha256": "0a"}, {"source": "b.png", "sha256": None}],
    }
    assert began <= found.time <= timestamp(time.time())


@pytest.mark.parametrize(
    ("words", "questions"),
    [
        ("total", ["The TOTAL of Oslo", "the total"]),
        ("total oslo", ["The TOTAL of Oslo"]),
        ("otal", ["The TOTAL of Oslo", "the total"]),
        ("金额", ["总金额是多少"]),
        ("总金额", ["总金额是多少"]),
        ('say "hi" OR', ['say "hi" OR bye']),
        ("of", ["The TOTAL of Oslo"]),
        ("AND NOT *", []),
        ("nothing", []),
    ],
)
def test_every_word_is_searched_in_question_and_answer(tmp_path: Path, words: str, questions: list[str]) -> None:
    asked = ["the total", "总金额是多少", 'say "hi" OR bye', "The TOTAL of Oslo"]
    write(tmp_path / "log.db", *(entry(question, answer="") for question in asked), entry("q", answer="unlike"))
    reader = LogReader(tmp_path / "log.db")
    assert [found.question for found in reader.search(words)] == questions
    assert [found.answer for found in reader.search("LIKE")] == ["unlike"]
    with pytest.raises(UserError, match="nothing to search for"):
        reader.search("  ")


def test_deleted_answers_and_their_pictures_are_gone_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    shared, own = (LoggedPicture(source=name, sha256=name, content=name.encode() * 9) for name in ("shared", "owned"))
    write(path, entry("first secret", pictures=[shared, own]), entry("second", pictures=[shared]), entry("third"))
    reader = LogReader(path)
    reader.delete([1, 3])
    assert [found.question for found in reader.latest()] == ["second"]
    assert (reader.picture("shared"), reader.picture("owned")) == (shared.content, None)
    assert reader.search("secret") == []
    reader.close()
    content = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert b"secret" not in content
    assert b"owned" not in content
    assert b"second" in content
    with pytest.raises(UserError, match="no answer 1"):
        LogReader(path).delete([1])


def test_pruning_takes_the_oldest_by_age_and_by_size(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    write(path, *(entry(f"question {n}", answer=os.urandom(2000).hex()) for n in range(100)))
    database = sqlite3.connect(path)
    database.execute("UPDATE answers SET time = '2001-01-01T00:00:00.000Z' WHERE id <= 10")
    database.commit()
    database.close()
    reader = LogReader(path)
    assert reader.prune(before="2002-01-01T00:00:00.000Z") == 10
    assert [found.id for found in reader.oldest_first()] == list(range(11, 101))
    limit = reader.num_bytes // 2
    num_pruned = reader.prune(max_bytes=limit)
    assert reader.num_bytes <= limit
    assert path.stat().st_size <= limit
    kept = [found.id for found in reader.oldest_first()]
    assert kept == list(range(11 + num_pruned, 101)) != []
    assert reader.prune(max_bytes=0) == len(kept)
    assert reader.prune(max_bytes=0) == 0


@needs_modes
def test_only_the_owner_can_read_the_files(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    log = AnswerLog(path, fail)
    log.write(entry())
    files = list(tmp_path.iterdir())
    assert len(files) > 1  # the write-ahead log lies beside it
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    log.close()
    path.chmod(0o644)
    AnswerLog(path, fail).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_file_of_another_kind_is_refused_and_stays_as_it_is(tmp_path: Path) -> None:
    text, other, later = tmp_path / "notes.txt", tmp_path / "other.db", tmp_path / "later.db"
    text.write_text("no database at all, but long enough to be one" * 100)
    database = sqlite3.connect(other)
    database.execute("CREATE TABLE notes (text)")
    database.close()
    write(later)
    database = sqlite3.connect(later)
    database.execute("PRAGMA user_version = 99")
    database.close()
    for path, message in ((text, "not a database"), (other, "another program"), (later, "later version"),
                          (tmp_path, "cannot open the log"), (tmp_path / "no" / "log.db", "No such file")):  # fmt: skip
        before = path.read_bytes() if path.is_file() else None
        with pytest.raises(UserError, match=message):
            AnswerLog(path, fail)
        assert (path.read_bytes() if path.is_file() else None) == before
    with pytest.raises(UserError, match="No such file"):
        LogReader(tmp_path / "missing.db")
    assert not (tmp_path / "missing.db").exists()


def test_a_full_disk_is_reported_once_and_breaks_nothing(tmp_path: Path) -> None:
    messages: list[str] = []
    log = AnswerLog(tmp_path / "log.db", messages.append)
    log.write(entry("before"))
    (pages,) = log._database.execute("PRAGMA page_count").fetchone()
    log._database.execute(f"PRAGMA max_page_count = {pages}")  # SQLite's own way to simulate a full disk
    for n in range(3):
        log.write(entry(f"large {n}", answer="x" * 100_000))
    assert messages == ["the answer is not in the log: database or disk is full"]
    log._database.execute("PRAGMA max_page_count = 100000")
    log.write(entry("after"))
    log.close()
    assert [found.question for found in LogReader(tmp_path / "log.db").oldest_first()] == ["before", "after"]


def test_several_processes_write_at_the_same_time(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from vl2.answer_log.entry import LogEntry\n"
        "from vl2.answer_log.writer import AnswerLog\n"
        "from vl2.process.conversation import Turn\n"
        "log = AnswerLog(sys.argv[1], sys.exit)\n"
        "for n in range(20):\n"
        "    turn = Turn(role='user', pieces=(f'{sys.argv[2]} {n}',))\n"
        "    log.write(LogEntry(source='ask', model='m', turns=[turn], answer='x', finish_reason='stop'))\n"
    )
    path = tmp_path / "log.db"  # the first of the processes creates it
    running = [subprocess.Popen([sys.executable, "-c", program, path, str(n)]) for n in range(2)]
    assert [process.wait() for process in running] == [0, 0]
    questions = {found.question for found in LogReader(path).oldest_first()}
    assert questions == {f"{n} {m}" for n in range(2) for m in range(20)}


def test_pictures_are_kept_by_the_hash_of_their_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(PNG)
    digest = sha256(PNG).hexdigest()
    data = "data:image/png;base64," + base64.b64encode(PNG).decode()
    assert log_picture(str(path)) == LoggedPicture(source=str(path), sha256=digest)
    assert log_picture(Image.open(path), str(path), keeps_bytes=True).content == PNG
    assert log_picture(data) == LoggedPicture(source="data", sha256=digest)
    assert log_picture(PNG, "-") == LoggedPicture(source="stdin", sha256=digest)
    drawn = log_picture(Image.new("RGB", (2, 2)), "page 3", keeps_bytes=True)
    assert drawn.source == "page 3"
    assert drawn.content is not None
    assert drawn.content.startswith(b"\x89PNG")
    assert log_picture("missing.png") == LoggedPicture(source="missing.png", sha256=None)
    assert log_picture(str(tmp_path)).sha256 is None


@pytest.mark.parametrize(
    ("url", "kept"),
    [
        ("https://ann:pass@example.org:8443/a/b.png?token=secret#x", "https://example.org:8443/a/b.png"),
        ("http://example.org/a.png?X-Amz-Signature=secret", "http://example.org/a.png"),
        ("http://[::1/a.png", "a malformed URL"),
    ],
)
def test_what_may_be_secret_in_a_url_is_not_kept(url: str, kept: str) -> None:
    assert log_picture(url) == LoggedPicture(source=kept, sha256=None)
    assert log_picture(Image.new("RGB", (1, 1)), url).source == kept


def test_the_entries_of_an_export_are_json(tmp_path: Path) -> None:
    write(tmp_path / "log.db", *(entry(f"question {n}") for n in range(450)))
    lines = [json.dumps(found.to_dict()) for found in LogReader(tmp_path / "log.db").oldest_first()]
    assert [json.loads(line)["id"] for line in lines] == list(range(1, 451))


def test_a_log_is_opened_by_reading_too(tmp_path: Path) -> None:
    write(tmp_path / "log.db", entry())
    database = open_log(tmp_path / "log.db", creates=False)
    assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    database.close()
