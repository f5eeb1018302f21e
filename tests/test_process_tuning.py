"""Waiting threads sleep soon: what the OpenMP runtime is told, when, and by whom."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

from vl2.errors import UserError
from vl2.process_tuning import SPINS, USER_SETTINGS, VARIABLE

SHOW = f"import os; print(os.environ.get({VARIABLE!r}), end='')"


def run(program: str, **variables: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in USER_SETTINGS} | variables
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    return done.stdout


def inside(variable: str) -> str:
    return textwrap.dedent(
        f"""
        import os, sys
        {variable}
        from vl2.process_tuning import brief_spins
        with brief_spins():
            print(os.environ.get({VARIABLE!r}))
        print(os.environ.get({VARIABLE!r}))
        """
    )


def test_the_runtime_is_told_before_pytorch_is_loaded_and_nobody_after() -> None:
    assert run(inside("")).split() == [str(SPINS), "None"]


@pytest.mark.parametrize("name", USER_SETTINGS)
def test_what_the_user_said_stays(name: str) -> None:
    given = "active" if name == "OMP_WAIT_POLICY" else "77"
    expected = "None" if name == "OMP_WAIT_POLICY" else "77"
    assert run(inside(""), **{name: given}).split() == [expected, expected]


def test_once_pytorch_is_there_nothing_is_changed() -> None:
    assert run(inside("sys.modules['torch'] = sys")).split() == ["None", "None"]


def test_the_command_line_and_the_package_load_pytorch_with_short_spins() -> None:
    # The stand-in for PyTorch says what the environment holds at the moment that it is loaded.
    stand_in = textwrap.dedent(
        f"""
        import os, sys
        class Finder:
            def find_spec(self, name, path=None, target=None):
                if name == "torch":
                    print(os.environ.get({VARIABLE!r}))
                    raise SystemExit(0)
        sys.meta_path.insert(0, Finder())
        """
    )
    assert run(stand_in + "import vl2; vl2.load").split() == [str(SPINS)]
    assert run(stand_in + "from vl2.cli.main import main; main(['ask', 'hi', '-q'])").split() == [str(SPINS)]


def test_a_peer_of_a_measurement_does_not_get_our_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    from vl2.bench.target import OURS, Target

    given: list[str | None] = []

    def started(command: list[str], *, env: dict[str, str], **_: object) -> None:
        given.append(env.get(VARIABLE))
        raise OSError("enough")

    monkeypatch.setattr("subprocess.Popen", started)
    for ours in (str(SPINS), "77"):
        monkeypatch.setenv(VARIABLE, ours)
        for command in (OURS, ("peer",)):
            with pytest.raises(UserError):
                Target(command, threads=None)
    assert given == [str(SPINS), None, "77", "77"]
