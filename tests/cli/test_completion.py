"""What the shells complete, asked of the shells themselves where they are installed."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from vl2.cli.parse import COMMANDS

IN_BASH = r"""
source "$SCRIPT"
registered=$(complete -p vl2)
function=$(sed -E 's/.*-F ([^ ]+) .*/\1/' <<< "$registered")
COMP_WORDS=("$@")
COMP_CWORD=$(( $# - 1 ))
$function vl2 "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
printf '%s\n' "${COMPREPLY[@]}"
"""


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_every_shell_gets_a_script_with_all_commands(vl2, shell: str) -> None:
    ran = vl2("completion", shell)
    assert (ran.code, ran.err) == (0, "")
    assert all(f"'{command}'" in ran.out for command in COMMANDS)


def test_zsh_offers_files_where_the_parser_offers_nothing(vl2) -> None:
    first, *_, last = vl2("completion", "zsh").out.splitlines()
    assert first == "#compdef vl2"
    assert last.endswith(' "$@" || _files')


def test_other_shells_are_refused(vl2) -> None:
    ran = vl2("completion", "cmd")
    assert (ran.code, ran.out) == (2, "")


@pytest.mark.skipif(shutil.which("bash") is None or os.name == "nt", reason="needs bash")
def test_bash_completes_commands_options_choices_and_files(vl2, tmp_path: Path) -> None:
    script = tmp_path / "vl2.bash"
    script.write_text(vl2("completion", "bash").out, encoding="utf-8")
    work = tmp_path / "work"
    (work / "my pictures").mkdir(parents=True)
    (work / "bars.png").write_bytes(b"")

    def offered(*words: str) -> set[str]:
        done = subprocess.run(
            ["bash", "--norc", "-c", IN_BASH, "bash", "vl2", *words],
            cwd=work,
            env={**os.environ, "SCRIPT": str(script)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (done.returncode, done.stderr) == (0, "")
        return {*done.stdout.splitlines()} - {""}

    assert set(COMMANDS) <= offered("")
    assert offered("loc") == {"locate"}
    assert offered("models", "re") == {"remove"}
    assert offered("ask", "--te") == {"--temperature"}
    assert offered("ask", "What?", "-i", "ba") == {"bars.png"}
    assert offered("ask", "What?", "--image", "my") == {"my pictures"}
    assert offered("read", "ba") == {"bars.png"}
    assert "--run.minutes" in offered("train", "recipe.toml", "--run.mi")
    assert offered("train", "recipe.toml", "--engine.compute", "") == {"float32", "bfloat16"}
