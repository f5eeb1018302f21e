"""The page: its form, what is not told in it, and what is refused before the work begins."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vl2.checkpoint.machine_memory import MachineMemory
from vl2.kernels import load_kernels
from vl2.verify import run_checks
from vl2.verify.check import Check
from vl2.verify.issue_page import Page, Redactor

from .conftest import change_json, first_file

USER, HOST = "janedoe", "janes-laptop"


@pytest.fixture
def private(monkeypatch, tmp_path):
    """Let the user and the machine have names, and a home with a space in it."""
    home = tmp_path / "people" / "Jane Doe"
    home.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    for variable in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(variable, USER)
    monkeypatch.setattr("socket.gethostname", lambda: f"{HOST}.example.org")
    return home


def secrets(home: Path) -> list[str]:
    return ["Jane Doe", USER, HOST, str(home.parent), "private-models"]


def test_nothing_private_is_told_even_by_errors(vl2, damaged, private, tmp_path):
    folder = private / "private-models" / f"{USER}-vl2"
    folder.parent.mkdir()
    damaged.rename(folder)
    file = first_file(folder)
    file.write_bytes(file.read_bytes()[:-1000])
    (folder / f"letter of {USER}.txt").write_text("x")
    (folder / "processor_config.json").write_text("{")  # a message with the whole path
    change_json(folder / "config.json", lambda values: values.update(_name_or_path=str(folder)))
    out = tmp_path / "page.md"
    ran = vl2("verify", folder, "--out", out, "--json", "--pictures", private)
    assert ran.code == 1
    page = out.read_text(encoding="utf-8")
    assert f"{file.name} was cut short" in page.replace("\\", "")
    for text in (ran.out, page):
        for secret in secrets(private):
            assert secret not in text, text
        assert str(Path.cwd()) not in text


def test_a_crash_of_ours_is_a_finding_without_paths(verify, correct, private, monkeypatch):
    def crash(*_: object) -> None:
        raise ZeroDivisionError(f"in {private}/private-models/x.py of {USER} on {HOST}")

    monkeypatch.setattr(run_checks.agreement, "make_test_sample", crash)
    report = verify(correct)
    assert report.failed == ["run"]
    assert report.find("run")["found"] == "ended by ZeroDivisionError: in x.py of [removed] on [removed]"
    text = "\n".join(report.find("run")["details"])
    assert 'run_checks.py", line ' in text
    assert str(Path(run_checks.__file__).parent) not in text
    assert not any(secret in text for secret in secrets(private))
    assert report.verdict("values") == "pass"  # what was found before is kept


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("/data/models/tiny lacks 3 tensors: a.b", "tiny lacks 3 tensors: a.b"),
        ("no file '/etc/vl2/config.json' there", "no file 'config.json' there"),
        (r"C:\Users\ann\models\x.json is missing", "x.json is missing"),
        ("86.5 tokens/s and <|ref|>a<|/ref|>", "86.5 tokens/s and <|ref|>a<|/ref|>"),
        ("see docs/quantization.md", "see docs/quantization.md"),
        ("cannot fetch https://example.org/images/a.png: 404", "cannot fetch https://example.org/images/a.png: 404"),
        (f"{USER} at {HOST}, {USER}2 is another", f"[removed] at [removed], {USER}2 is another"),
    ],
)
def test_what_is_taken_out_and_what_is_left(private, text, cleaned):
    assert Redactor.of_this_machine({}).clean(text) == cleaned


def page_of(*checks: Check) -> Page:
    return Page(label="folder x", size=None, held="", checks=checks, machine={"CPU": "a | b"})


def test_special_tokens_are_shown_and_not_read_as_markup():
    check = Check(
        group="tensors",
        name="names",
        verdict="fail",
        found="<|User|> is 3, see #12 and @somebody\nand *that*",
        details=("```", "</details>"),
    )
    text = page_of(check).to_markdown()
    rows = [line for line in text.splitlines() if line.startswith("| 2 |")]
    assert rows == ["| 2 | names | **FAIL** | &lt;\\|User\\|&gt; is 3, see \\#12 and \\@somebody and \\*that\\* |"]
    assert "````text\n```\n</details>\n````" in text


def test_names_of_any_length_do_not_make_a_page_of_any_length():
    check = Check(group="tensors", name="names", verdict="fail", found="a" * 10**6, details=("b" * 10**6,))
    assert len(page_of(check).to_markdown()) < 10_000


def test_a_machine_where_nobody_has_a_home_and_the_folder_is_gone(monkeypatch):
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    def no_folder() -> Path:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.setattr(Path, "cwd", no_folder)
    assert Redactor.of_this_machine({}).clean("/data/secret/x.json is missing") == "x.json is missing"


def test_the_page_has_every_group_and_the_json_says_the_same(vl2, correct, tmp_path):
    out = tmp_path / "page.md"
    ran = vl2("verify", correct, "--quick", "--out", out)
    assert (ran.code, ran.out) == (0, "")
    numbers = re.findall(r"^\| (\d) \|", out.read_text(encoding="utf-8"), re.M)
    assert sorted(set(numbers)) == list("12345678")
    assert ran.err.splitlines()[-1].startswith("vl2 verify: ")
    quiet = vl2("verify", correct, "--quick", "--quiet")
    assert quiet.err == ""
    assert quiet.out.startswith("# vl2 verify: folder random\n")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("nano", "--out", "/no/such/folder/page.md"), "there is no folder /no/such/folder"),
        (("nano", "--out", "/"), "it is a folder"),
        (("nano", "--weights", "int3"), "weights must be"),
        (("nano", "--memory", "much"), "a size is a number with a unit"),
        (("nano", "--device", "abacus"), "device must be"),
        (("no folder",), "no folder no folder"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_checked(vl2, monkeypatch, arguments, says):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("something was checked")

    monkeypatch.setattr("vl2.verify.run_checks.verify", refuse)
    ran = vl2("verify", *arguments)
    assert (ran.code, ran.out) == (1, "")
    assert says in ran.err


def test_a_machine_with_too_little_memory_is_told_what_is_needed(verify, correct, monkeypatch):
    monkeypatch.setattr(run_checks.MachineMemory, "now", lambda: MachineMemory(total=2 * 10**8, available=10**8))
    monkeypatch.setattr(run_checks, "load", None)  # it would be called
    report = verify(correct)
    assert report.ran.code == 0
    assert report.verdict("values") == "pass"
    reasons = {check["found"] for check in report.page["checks"] if check["name"] == "all of it"}
    (reason,) = reasons
    assert re.fullmatch(
        r"needs \d\.\d\d GB of memory in bfloat16, and 0\.10 GB are free; with --weights int4 it needs \d\.\d\d GB",
        reason,
    )


def test_float32_is_left_out_where_only_bfloat16_fits(verify, correct, monkeypatch):
    needed = run_checks._memory_shortage

    def lacks(plan, subject, dtype=None):
        return "needs 9.9 GB" if dtype == "float32" else needed(plan, subject, dtype)

    monkeypatch.setattr(run_checks, "_memory_shortage", lacks)
    report = verify(correct)
    assert report.find("bfloat16 = float32")["verdict"] == "not checked"
    assert report.find("bfloat16 = float32")["found"] == "needs 9.9 GB"
    assert report.ran.code == 0


ROOT = Path(__file__).parents[2]


def rows(text: str) -> list[tuple[str, str]]:
    """Return name and result of every check of a page."""
    return re.findall(r"^\| \d \| (.+?) \| (pass|\*\*FAIL\*\*|not checked|measured) \|", text, re.M)


def test_the_example_of_the_documentation_is_what_the_command_writes(vl2):
    if load_kernels() is None:
        pytest.skip("the example was made with kernels")
    example = (ROOT / "docs" / "verify.md").read_text(encoding="utf-8").split("```text\n")[1]
    ran = vl2("verify", "nano", "--device", "cpu", "--quiet")
    assert rows(ran.out) == rows(example)
    assert len(rows(example)) > 20


def test_the_issue_form_is_one_and_asks_for_the_page():
    yaml = pytest.importorskip("yaml")
    form = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / "verification.yml").read_text(encoding="utf-8"))
    # The keys that GitHub requires of a form, and the types of its fields.
    assert (
        {"name", "description", "body"} <= set(form) <= {"name", "description", "title", "labels", "assignees", "body"}
    )
    fields = {field.get("id"): field for field in form["body"]}
    for field in form["body"]:
        assert field["type"] in ("markdown", "input", "textarea", "dropdown", "checkboxes")
        assert (
            field["attributes"].get("value" if field["type"] == "markdown" else "label")
            or field["attributes"]["options"]
        )
    assert fields["page"]["type"] == "textarea"
    assert fields["page"]["validations"]["required"] is True
    assert "render" not in fields["page"]["attributes"]  # the page is Markdown, not code
    assert "vl2 verify tiny --out page.md" in form["body"][0]["attributes"]["value"]
