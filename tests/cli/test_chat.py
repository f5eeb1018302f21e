"""`vl2 chat`: the loop with lines given to it, and the command with stdin piped in."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vl2.cli.chat import ChatLoop, as_path
from vl2.infer.sampling import GenerateOptions
from vl2.infer.session import Session
from vl2.infer.vlm import load

from ..reference import CHECKPOINTS, IMAGES

SMALL = CHECKPOINTS / "small"
PHOTO = IMAGES / "small50x37.png"
FLAGS = ("-m", SMALL, "--device", "cpu", "--max-new-tokens", "6")


@pytest.fixture(scope="module")
def vlm():
    return load(SMALL, device="cpu")


@pytest.fixture
def session(vlm) -> Session:
    return vlm.session()


class Typed:
    """Lines of a person; an exception in place of a line is raised, and then the input ends."""

    def __init__(self, *lines: str | BaseException) -> None:
        self._lines = iter(lines)

    def __call__(self) -> str:
        line = next(self._lines, EOFError())
        if isinstance(line, BaseException):
            raise line
        return line


def chat(session: Session, *lines: str | BaseException, **options: Any) -> None:
    ChatLoop(session, GenerateOptions(max_new_tokens=6), **options).run(Typed(*lines))


def test_a_question_gets_the_answer_of_the_library_and_is_remembered(session, vlm, capsys):
    chat(session, "hello", "", "and then?")
    other = vlm.session()
    texts = [other.ask(text, max_new_tokens=6).text for text in ("hello", "and then?")]
    assert capsys.readouterr() == ("".join(text + "\n" for text in texts), "")
    assert [m["role"] for m in session.messages] == ["user", "assistant"] * 2


def test_an_image_is_attached_to_the_next_question_only(session, vlm, capsys):
    chat(session, f"/image {PHOTO}", "hello", "again")
    out, err = capsys.readouterr()
    assert err == f"attached {PHOTO} (50 x 37)\n"
    assert out.startswith(vlm.chat("hello", [PHOTO], max_new_tokens=6).text + "\n")
    kinds = [[part["type"] for part in m["content"]] for m in session.messages if m["role"] == "user"]
    assert kinds == [["image", "text"], ["text"]]


def test_a_bad_image_is_told_and_the_loop_goes_on(session, capsys):
    chat(session, "/image no/such.png", "/image", "/image -", "hello")
    out, err = capsys.readouterr()
    assert err.splitlines() == [
        "vl2: cannot read image no/such.png: there is no such file",
        "vl2: /image needs a path or URL",
        "vl2: /image needs a path or URL: stdin is where you type",
    ]
    assert out
    assert len(session.messages) == 2


def test_an_attached_image_outlives_its_file(session, tmp_path):
    path = shutil.copy(PHOTO, tmp_path / "photo.png")
    loop = ChatLoop(session, GenerateOptions(max_new_tokens=2))
    loop.handle(f"/image {path}")
    Path(path).unlink()
    loop.handle("hello")
    loop.handle("again")
    assert len(session.messages) == 4


def test_clear_forgets_turns_and_images_but_not_the_system_prompt(vlm, capsys):
    session = vlm.session(system="Be brief.")
    chat(session, "hello", f"/image {PHOTO}", "/clear", "hello")
    assert [m["role"] for m in session.messages] == ["system", "user", "assistant"]
    assert [part["type"] for part in session.messages[1]["content"]] == ["text"]
    assert "cleared\n" in capsys.readouterr().err


def test_a_saved_conversation_can_be_asked_again(session, vlm, capsys, tmp_path):
    path = tmp_path / "talk.json"
    chat(session, f"/image {PHOTO}", "hello", f"/save {path}")
    assert capsys.readouterr().err.endswith(f"saved {path}\n")
    messages = json.loads(path.read_text(encoding="utf-8"))["messages"]
    assert messages[0]["content"][0] == {"type": "image", "image": str(PHOTO)}
    assert messages[1] == {"role": "assistant", "content": vlm.generate(messages[:1], max_new_tokens=6).text}


def test_a_bad_place_to_save_is_told(session, capsys, tmp_path):
    chat(session, "/save", f"/save {tmp_path}/no/talk.json")
    assert capsys.readouterr().err.splitlines() == [
        "vl2: /save needs a file name",
        f"vl2: cannot write {tmp_path}/no/talk.json: No such file or directory",
    ]


def test_help_and_unknown_commands_are_answered_on_stderr(session, capsys):
    chat(session, "/help", "/ask hello", "/exit", "never asked")
    out, err = capsys.readouterr()
    assert out == ""
    assert "/save FILE" in err
    assert err.endswith("vl2: no command /ask: use /image, /clear, /save, /help or /exit\n")
    assert session.messages == []


def test_a_question_may_begin_with_a_path(session):
    chat(session, "/etc/hosts is what?")
    assert len(session.messages) == 2


def test_ctrl_c_at_the_prompt_starts_a_new_line_and_ends_a_script(session, capsys):
    chat(session, KeyboardInterrupt(), "/exit")
    assert capsys.readouterr().err == "\n"
    with pytest.raises(KeyboardInterrupt):
        chat(session, KeyboardInterrupt(), stops_on_interrupt=True)


class Interrupted:
    """A session whose answer is stopped by Ctrl-C after some pieces."""

    def __init__(self, session: Session, pieces: int) -> None:
        self._session, self._pieces = session, pieces
        self.clear = session.clear

    @property
    def messages(self) -> list[Any]:
        return self._session.messages

    def stream(self, *arguments: Any, **options: Any) -> Iterator[str]:
        given = self._session.stream(*arguments, **options)
        try:
            for _ in range(self._pieces):
                yield next(given)
            raise KeyboardInterrupt
        finally:
            given.close()


def test_ctrl_c_stops_only_the_answer_and_keeps_what_came(session, capsys):
    chat(Interrupted(session, 2), f"/image {PHOTO}", "hello", "/save")
    out, err = capsys.readouterr()
    assert out.strip() == session.messages[1]["content"]
    assert err.splitlines()[1:] == ["[stopped]", "vl2: /save needs a file name"]


def test_an_answer_stopped_before_it_began_leaves_the_image_attached(session):
    loop = ChatLoop(Interrupted(session, 0), GenerateOptions(max_new_tokens=6))
    loop.handle(f"/image {PHOTO}")
    loop.handle("hello")
    assert session.messages == []
    loop._session = session
    loop.handle("hello")
    assert session.messages[0]["content"][0]["type"] == "image"


@pytest.mark.parametrize("quoted", ["'{}'", '"{}"', "{}"])
def test_a_dropped_path_is_understood(tmp_path, quoted):
    path = tmp_path / "my photo.png"
    path.touch()
    assert as_path(quoted.format(path)) == str(path)
    assert as_path(str(path).replace(" ", "\\ ")) == str(path)


def test_a_path_may_begin_at_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert as_path("~/photo.png") == str(tmp_path / "photo.png")
    assert as_path("it's") == "it's"
    url = f"data:image/png;base64,{'A' * 6000}"
    assert as_path(url) == url


def test_a_mistyped_home_or_name_does_not_end_the_conversation(session, capsys, tmp_path):
    chat(
        session,
        "/image ~nobody-of-this-name.png",
        f"/save {tmp_path}/{'x' * 300}",
        "hello \udce9",
        f"/save {tmp_path}/a.json",
    )
    err = capsys.readouterr().err
    assert "there is no home of that name" in err
    assert "is no path here" in err
    assert json.loads((tmp_path / "a.json").read_text())["messages"][0]["content"][0]["text"] == "hello ?"


def test_lines_from_a_pipe_are_answered_without_prompts_or_notices(vl2, vlm):
    ran = vl2("chat", *FLAGS, stdin=b"hello\n\n/exit\nnever asked\n")
    assert (ran.code, ran.out, ran.err) == (0, vlm.chat("hello", max_new_tokens=6).text + "\n", "")


def test_json_is_one_line_for_each_answer(vl2, vlm):
    ran = vl2("chat", "--json", "--system", "Be brief.", "-i", PHOTO, *FLAGS, stdin=b"hello\nagain")
    answers = [json.loads(line) for line in ran.out.splitlines()]
    assert answers[0] == vlm.chat("hello", [PHOTO], system="Be brief.", max_new_tokens=6).to_dict()
    assert len(answers) == 2
    assert (ran.code, ran.err) == (0, "")


def test_a_pipe_that_is_not_text_is_refused(vl2):
    ran = vl2("chat", *FLAGS, stdin=b"\xff\xfe\n")
    assert (ran.code, ran.out, ran.err) == (1, "", "vl2: the questions on stdin are not text (UTF-8)\n")


def test_a_conversation_longer_than_the_context_is_told_and_goes_on(vl2):
    ran = vl2("chat", "--max-context", "40", "-m", SMALL, stdin=b"hello\nagain\n/clear\nhello\n")
    assert ran.code == 0
    assert ran.out.count("\n") >= 2
    assert "the context is 40" in ran.err
