"""Help, version and usage errors: the table is (arguments, what the one line on stderr says)."""

from __future__ import annotations

import subprocess
import sys

import pytest

import vl2 as package
from vl2.cli.parse import COMMANDS


def test_the_version_is_printed(vl2):
    for flag in ("--version", "-V"):
        ran = vl2(flag)
        assert (ran.code, ran.out, ran.err) == (0, f"vl2 {package.__version__}\n", "")


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_help_names_every_command_and_has_examples(vl2, arguments):
    ran = vl2(*arguments)
    assert (ran.code, ran.err) == (0, "")
    assert "Examples:\n  vl2 ask " in ran.out
    for command in COMMANDS:
        assert f"\n  {command} " in ran.out


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_has_examples_that_the_command_accepts(vl2, command):
    ran = vl2(command, "--help")
    assert (ran.code, ran.err) == (0, "")
    assert f"Examples:\n  vl2 {command}" in ran.out
    assert "{None}" not in ran.out
    assert "default: None" not in ran.out


@pytest.mark.parametrize("arguments", [["--help"], ["ask", "--help"], ["--version"], ["ask", "--modle", "x"]])
def test_help_answers_at_once_because_it_imports_nothing_heavy(arguments):
    program = (
        "import sys\nfrom vl2.cli.main import run\n"
        f"run({arguments!r})\n"
        "heavy = [n for n in ('torch', 'transformers', 'numpy', 'PIL', 'huggingface_hub') if n in sys.modules]\n"
        "sys.exit(' '.join(heavy) or None)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["asq"], "unknown command asq (did you mean ask?); `vl2 --help` shows what is allowed"),
        (["frobnicate"], "unknown command frobnicate; `vl2 --help` shows what is allowed"),
        (["xyz"], "unknown command xyz; `vl2 --help` shows what is allowed"),
        (["--modle", "x"], "unknown option --modle (did you mean --model?)"),
        (["ask"], "QUESTION is missing; `vl2 ask --help` shows what is allowed"),
        (["inspect"], "TARGET is missing; `vl2 inspect --help` shows what is allowed"),
        (["ask", "hi", "there"], "unknown argument there"),
        (["ask", "hi", "--json", "yes"], "unknown argument yes"),
        (["ask", "hi", "--modle", "x"], "unknown option --modle (did you mean --model?); `vl2 ask --help`"),
        (["ask", "hi", "--temprature", "1"], "unknown option --temprature (did you mean --temperature?)"),
        (["ask", "hi", "--images", "x"], "unknown option --images (did you mean --image?)"),
        (["describe", "--ground"], "unknown option --ground (did you mean --grounded?)"),
        (["ask", "hi", "--dray", "x", "--jsn"], "unknown option --dray (did you mean --draw?)"),
        (["ask", "hi", "-x"], "unknown option -x;"),
        (["ask", "hi", "-i"], "Missing value for argument '-i/--image': one is needed"),
        (["ask", "hi", "--temperature", "warm"], "Error parsing --temperature: could not convert string to float:"),
        (["ask", "hi", "--max-new-tokens", "1.5"], "Error parsing --max-new-tokens: invalid literal for int()"),
        (["inspect", "tiny", "--device", "cpu"], "unknown option --device"),
    ],
)  # fmt: skip
def test_bad_usage_is_one_line_and_exit_code_2(vl2, arguments, says):
    ran = vl2(*arguments)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith(f"vl2: {says}")
    assert ran.err.count("\n") == 1
