"""Run the command line in this process: arguments and stdin in; exit code, stdout and stderr out."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from vl2.cli.main import run


@dataclass(frozen=True, kw_only=True)
class Ran:
    """What a command did."""

    code: int
    out: str
    err: str


@pytest.fixture
def vl2(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ran]:
    def call(*arguments: str | Path, stdin: bytes = b"") -> Ran:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return Ran(code=code, out=out, err=err)

    return call


@pytest.fixture
def nothing_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the test if a checkpoint is looked up (which may download it) or its weights are loaded."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a checkpoint was looked up or loaded")

    monkeypatch.setattr("vl2.checkpoint.locate_checkpoint", refuse)
    monkeypatch.setattr("vl2.infer.vlm.load", refuse)
