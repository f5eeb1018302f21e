"""`python -m experiments.nano.warm_up`: its help names it, and what a person can cause is one line."""

from __future__ import annotations

import pytest

from experiments.nano.warm_up.__main__ import parse
from vl2.cli.main import main


def test_the_help_shows_how_it_is_called(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"], parse)
    assert stop.value.code == 0
    assert "python -m experiments.nano.warm_up runs/nano/reading.toml" in capsys.readouterr().out


def test_a_recipe_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["no-such.toml"], parse)
    assert stop.value.code == 1
    assert capsys.readouterr().err == "vl2: cannot read no-such.toml: No such file or directory\n"
