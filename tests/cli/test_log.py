"""`--log` and `vl2 log`: what the commands answered is kept, listed, found, exported and deleted."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

import pytest
from PIL import Image

from vl2.answer_log.entry import LogEntry
from vl2.answer_log.reader import LogReader
from vl2.answer_log.writer import AnswerLog
from vl2.cli.log import printable, suffix_of
from vl2.process.conversation import Turn

from .test_answers import FLAGS, PHOTO, reply_to


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A log of three answers."""
    path = tmp_path / "log.db"
    writer = AnswerLog(path, print)
    for question, answer in (("What is it?", "A circle."), ("The total?", "7.85"), ("Read \x1b[2J it.", "Station")):
        turn = Turn(role="user", pieces=(question,))
        writer.write(LogEntry(source="ask", model="nano", turns=[turn], answer=answer, finish_reason="stop"))
    writer.close()
    return path


def test_an_answer_is_kept_with_its_picture_and_numbers(vl2, tmp_path):
    path = tmp_path / "log.db"
    ran = vl2("ask", "hello", "-i", PHOTO, *FLAGS, "--log", path, "--log-pictures", "--temperature", "0.5", "--seed", 3)
    reply = reply_to("hello", [PHOTO], temperature=0.5, seed=3)
    assert (ran.code, ran.out, ran.err) == (0, reply.text + "\n", "")
    reader = LogReader(path)
    (found,) = reader.latest()
    assert (found.source, found.question, found.answer) == ("ask", "hello", reply.text)
    assert (found.finish_reason, found.options) == (
        reply.finish_reason,
        {"max_new_tokens": 12, "temperature": 0.5, "seed": 3},
    )
    assert found.prompt_tokens == reply.usage.prompt_tokens
    assert found.visual_tokens == reply.usage.visual_tokens
    assert found.completion_tokens == reply.usage.completion_tokens
    digest = sha256(PHOTO.read_bytes()).hexdigest()
    assert found.pictures == [{"source": str(PHOTO), "sha256": digest}]
    assert reader.picture(digest) == PHOTO.read_bytes()


def test_every_command_that_asks_writes_into_the_log_of_the_environment(vl2, tmp_path, monkeypatch):
    path = tmp_path / "log.db"
    monkeypatch.setenv("VL2_LOG", str(path))
    vl2("describe", "-i", PHOTO, *FLAGS, "--json")
    vl2("locate", "a dog", "a cat", "-i", PHOTO, *FLAGS)
    vl2("read", PHOTO, *FLAGS)
    vl2("chat", *FLAGS, "-q", stdin=b"hello\nand now?\n")
    found = list(LogReader(path).oldest_first())
    assert [one.source for one in found] == ["describe", "locate", "locate", "read", "chat", "chat"]
    assert [len(one.pictures) for one in found] == [1, 1, 1, 1, 0, 0]
    assert "a cat" in found[2].question
    assert found[4].conversation == found[5].conversation is not None
    assert [message["role"] for message in found[5].messages] == ["user", "assistant", "user"]
    assert all(one.prompt_tokens for one in found)


def test_without_a_log_nothing_is_written(vl2, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert vl2("ask", "hello", *FLAGS).code == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("nothing_loads")
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("ask", "hi", "--log", "no/such/folder/log.db"), "cannot open the log"),
        (("ask", "hi", "--log-pictures"), "--log-pictures needs a log"),
        (("serve", "--log-pictures", "--port", "0"), "--log-pictures needs a log"),
        (("log", "list"), "say which log: --log FILE, or VL2_LOG"),
        (("log", "list", "--log", "missing.db"), "cannot open the log"),
    ],
)
def test_a_log_that_cannot_be_had_is_said_before_the_model_loads(vl2, arguments, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VL2_LOG", raising=False)
    ran = vl2(*arguments)
    assert says in ran.err
    assert (ran.code, ran.out, ran.err.count("\n")) == (1, "", 1)


def test_answers_are_listed_the_newest_first_in_a_line_each(vl2, log):
    ran = vl2("log", "list", "--log", log, "--limit", 2)
    lines = ran.out.splitlines()
    assert (ran.code, ran.err, len(lines)) == (0, "", 2)
    assert lines[0].endswith("ask  nano  Read �[2J it. -> Station")
    assert lines[1].split()[0] == "2"
    assert [one["id"] for one in json.loads(vl2("log", "list", "--log", log, "--json").out)] == [3, 2, 1]
    found = vl2("log", "search", "CIRCLE", "what", "--log", log).out.splitlines()
    assert [line.split()[0] for line in found] == ["1"]


def test_one_answer_is_shown_whole(vl2, log):
    out = vl2("log", "show", 1, "--log", log).out
    assert "user: What is it?" in out
    assert "answer: A circle." in out
    assert json.loads(vl2("log", "show", 2, "--log", log, "--json").out)["answer"] == "7.85"
    missing = vl2("log", "show", 9, "--log", log)
    assert (missing.code, missing.err) == (1, "vl2: the log has no answer 9\n")


def test_answers_are_exported_and_deleted(vl2, log, tmp_path):
    lines = vl2("log", "export", "--log", log).out.splitlines()
    assert [json.loads(line)["id"] for line in lines] == [1, 2, 3]
    assert vl2("log", "export", "--log", log, "--out", tmp_path / "out.jsonl").out == ""
    written = (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
    assert list(map(json.loads, written)) == list(map(json.loads, lines))
    assert vl2("log", "delete", 1, 3, "--log", log).code == 0
    assert [found.id for found in LogReader(log).latest()] == [2]


def test_pictures_are_exported_under_their_hash(vl2, tmp_path):
    log, folder = tmp_path / "log.db", tmp_path / "pictures"
    vl2("ask", "hello", "-i", PHOTO, *FLAGS, "--log", log, "--log-pictures")
    vl2("log", "export", "--log", log, "--pictures", folder)
    (file,) = folder.iterdir()
    assert file.name == f"{sha256(PHOTO.read_bytes()).hexdigest()}.png"
    assert file.read_bytes() == PHOTO.read_bytes()
    with Image.open(file) as picture:
        assert suffix_of(file.read_bytes()) == f".{(picture.format or '').lower()}"
    assert suffix_of(b"no picture") == ""


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "--older-than AGE, --larger-than SIZE"),
        (("--older-than", "30"), "--older-than must be a whole number with one of h, d, w"),
        (("--older-than", "-1d"), "--older-than must be"),
        (("--larger-than", "big"), "--larger-than must be a whole number with one of KB, MB, GB"),
    ],
)
def test_pruning_needs_an_age_or_a_size(vl2, log, arguments, says):
    ran = vl2("log", "prune", "--log", log, *arguments)
    assert says in ran.err
    assert (ran.code, LogReader(log).num_answers) == (1, 3)


def test_pruning_says_how_many_answers_are_gone(vl2, log):
    assert vl2("log", "prune", "--log", log, "--older-than", "1d").err == "vl2: 0 answers deleted\n"
    assert vl2("log", "prune", "--log", log, "--older-than", "0h", "--larger-than", "1gb").err == (
        "vl2: 3 answers deleted\n"
    )


def test_control_characters_do_not_reach_the_terminal():
    assert printable("a\x1b]0;x\x07\n\tb\u202e") == "a�]0;x�\n\tb�"
