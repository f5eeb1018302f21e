"""Tables, charts, plot code and its sandbox, and arithmetic: the answers are computed again here."""

from __future__ import annotations

import csv
import io
import random
import re
import sys
import time
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from PIL import Image

from vl2.errors import UserError
from vl2.synth.arithmetic import PROBLEMS, Arithmetic
from vl2.synth.chart import Chart
from vl2.synth.plot_code import PlotCode
from vl2.synth.plot_scripts import KINDS, write_script
from vl2.synth.sandbox import MIB, Limits, run_script
from vl2.synth.source import GenerationTally, generate
from vl2.synth.table_image import TableImage, draw_cells
from vl2.synth.table_questions import ask_number
from vl2.synth.tables import Table, as_number, made_up, parse_table, read_tables, write_number

TABLE = parse_table("Trees", 'Tree,Height (m),Seen\nOak,"1,020.5",3\nElm,30,7\nFir,41.25,7\n')


def test_numbers_are_read_and_written_exactly() -> None:
    assert [as_number(cell) for cell in ("1,020.5", " -3 ", "12%", "1,02", "", "1e5", "٣")] == [
        Decimal("1020.5"), Decimal(-3), None, None, None, None, None,
    ]  # fmt: skip
    assert [write_number(Decimal(text)) for text in ("10", "10.50", "0.30", "1000", "-2.0")] == [
        "10",
        "10.5",
        "0.3",
        "1000",
        "-2",
    ]
    assert TABLE.numeric_columns == [1, 2]


def answer(kind: str, table: Table = TABLE, column: int = 1) -> tuple[str, str] | None:
    asked = ask_number(table, random.Random(1), kind, column)
    return (asked.question, asked.answer) if asked else None


def test_questions_have_the_computed_answer() -> None:
    assert (answer("max") or "")[1] == "Oak"
    assert (answer("min") or "")[1] == "Elm"
    assert (answer("sum") or "")[1] == "1091.75"
    assert answer("max", column=2) is None, "two rows share the highest value"
    values = {"Oak": Decimal("1020.5"), "Elm": Decimal(30), "Fir": Decimal("41.25")}
    for seed in range(20):
        rng = random.Random(seed)
        asked = ask_number(TABLE, rng, "difference", 1)
        assert asked is not None
        first, second = re.findall("Oak|Elm|Fir", asked.question)
        assert Decimal(asked.answer) == abs(values[first] - values[second])
        asked = ask_number(TABLE, rng, "compare", 1)
        assert asked is not None
        assert asked.answer == max(re.findall("Oak|Elm|Fir", asked.question), key=lambda name: values[name])
        asked = ask_number(TABLE, rng, "count", 1)
        assert asked is not None
        limit = Decimal(re.findall(r"[\d.]+(?=\?)", asked.question)[0])
        assert int(asked.answer) == sum(value > limit for value in values.values())


def test_years_are_not_added_up() -> None:
    table = parse_table("t", "Name,Year\na,1990\nb,2001\n")
    assert ask_number(table, random.Random(0), "sum", 1) is None


def test_tables_are_written_as_markdown_html_and_csv() -> None:
    table = parse_table("t", 'A,B\n"x|y",<b>\n"a, b",2\n')
    assert table.as_markdown().splitlines() == ["| A | B |", "| --- | --- |", r"| x\|y | <b> |", "| a, b | 2 |"]
    assert "<td>&lt;b&gt;</td>" in table.as_html()
    assert list(csv.reader(io.StringIO(table.as_csv()))) == [["A", "B"], ["x|y", "<b>"], ["a, b", "2"]]


def test_tables_come_from_a_folder(tmp_path: Path) -> None:
    (tmp_path / "Some_towns.csv").write_text("Town,People\nAda,10\nBel,2000\nCor,333\n", encoding="utf-8")
    (tmp_path / "bad.csv").write_text("only a header\n", encoding="utf-8")
    assert [table.title for table in read_tables(str(tmp_path))] == ["Some towns"]
    source = TableImage(tables=str(tmp_path), tasks=("max",))
    answers = {record.messages[1].parts[0].text for record in generate(source, 12)}
    assert "Bel" in answers
    with pytest.raises(UserError, match=r"holds no \.csv file"):
        read_tables(str(tmp_path / "nothing"))


def test_a_quote_is_escaped_by_a_quote_or_a_backslash() -> None:
    for text in ('A,B\n"the ""x"" team",1\n', 'A,B\n"the \\"x\\" team","1"\n'):
        assert parse_table("t", text).rows == (('the "x" team', "1"),)


def test_tables_come_from_parquet_beside_files_of_another_kind(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [{"title": "Some towns", "csv": "Town,People\nAda,3\nBo,4\n"}, {"title": None, "csv": "A,B\n1,2\n"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "tables.parquet")
    pq.write_table(pa.Table.from_pylist([{"question": "?"}]), tmp_path / "questions.parquet")
    assert [table.title for table in read_tables(str(tmp_path))] == ["Some towns", "tables"]


@pytest.mark.parametrize("kind", [TableImage, Chart])
def test_the_licence_of_tables_that_are_given_is_not_made_up(kind: type[TableImage | Chart], tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("Town,People\nAda,3\nBo,14\nCy,29\n", encoding="utf-8")
    given = kind(tables=str(tmp_path))
    assert [source.own_licence() for source in (kind(), given)] == ["CC0-1.0", "check"]
    assert {record.licence for record in generate(kind(tables=str(tmp_path), licence="MIT"), 3)} == {"MIT"}


def test_a_table_of_long_cells_is_drawn_whole_or_refused() -> None:
    cells = [["Year", "What happened"], ["1990", "A very long story of things that were done in that year. " * 3]]
    data = draw_cells(cells)
    assert data == draw_cells(cells)
    with Image.open(io.BytesIO(data)) as image:
        assert image.width < 340
        assert image.height > 8 * 15  # the story takes several lines
    assert draw_cells([["A", "B"], ["1"]])
    for too_large in ([["a"] * 200], [["a"]] * 200):
        with pytest.raises(UserError, match="too large to draw"):
            draw_cells(too_large)
    with pytest.raises(UserError, match="the table is empty"):
        draw_cells([["", " "]])


def test_made_up_tables_have_named_rows() -> None:
    for seed in range(20):
        table = made_up(random.Random(seed), "en")
        assert table.has_keys
        assert len(table.numeric_columns) == len(table.header) - 1


def test_charts_are_drawn_in_every_kind() -> None:
    pytest.importorskip("matplotlib")
    records = list(generate(Chart(tasks=("kind",)), 16))
    assert len({record.messages[1].parts[0].text for record in records}) >= 4


def test_a_plot_is_the_picture_of_its_code_and_failing_code_is_dropped_and_counted(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    good = "import matplotlib.pyplot as plt\nplt.plot([1, 2, 3], [2, 9, 4])\nplt.show()\n"
    for name, code in (("a", good), ("b", "1 / 0"), ("c", "x = 1")):
        (tmp_path / f"{name}.py").write_text(code, encoding="utf-8")
    tally = GenerationTally()
    records = list(generate(PlotCode(scripts=str(tmp_path)), 6, tally=tally))
    assert tally.made + tally.dropped["plot code: error"] == 6
    assert records
    assert all(record.messages[1].parts[0].text == f"```python\n{good.strip()}\n```" for record in records)


def test_every_kind_of_script_compiles_and_varies() -> None:
    for kind in KINDS:
        scripts = {write_script(kind, random.Random(seed)) for seed in range(10)}
        assert len(scripts) == 10
        for script in scripts:
            compile(script, kind, "exec")


def test_all_kinds_of_scripts_run() -> None:
    pytest.importorskip("matplotlib")
    # In one process: what is tested is the scripts.
    whole = "\n".join(write_script(kind, random.Random(7)) + "plt.close('all')\n" for kind in KINDS)
    ran = run_script(whole, limits=Limits(cpu_s=60, wall_s=90), warm=("matplotlib.pyplot",))
    assert ran.outcome == "ok", ran.output


def test_the_sandbox_returns_output_and_files() -> None:
    ran = run_script(
        "print('hello')\nopen('a.txt', 'w').write('A')\nopen('b.txt', 'w').write('B')", wanted=("a.txt", "c")
    )
    assert (ran.outcome, ran.output.strip(), ran.files) == ("ok", "hello", {"a.txt": b"A"})
    ran = run_script("import json, numpy\nprint(numpy.arange(4).sum())")
    assert (ran.outcome, ran.output.strip()) == ("ok", "6"), ran.output


def test_the_sandbox_ends_an_endless_loop_by_its_cpu_time_and_a_sleeper_by_the_wall_clock() -> None:
    assert run_script("while True: pass", limits=Limits(cpu_s=1, wall_s=30)).outcome == "killed"
    assert run_script("import time; time.sleep(60)", limits=Limits(wall_s=1)).outcome == "timeout"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux holds the limit of memory")
def test_the_sandbox_stops_a_memory_hog() -> None:
    ran = run_script("x = bytearray(1 << 30)", limits=Limits(memory_bytes=512 * MIB))
    assert ran.outcome in ("error", "killed")
    assert "MemoryError" in ran.output


@pytest.mark.parametrize(
    "code",
    [
        "import socket; socket.create_connection(('127.0.0.1', 80), 1)",
        "import socket; socket.getaddrinfo('example.org', 80)",
        "import subprocess; subprocess.run(['true'])",
        "import os; os.system('true')",
        "import os; os.fork()",
        "import os; os.remove('/nothing-here')",
        "import os; os.kill(1, 0)",
        "import resource; resource.setrlimit(resource.RLIMIT_CPU, (99, 99))",
        "import ctypes; ctypes.CDLL(None)",
    ],
)
def test_the_sandbox_refuses(code: str) -> None:
    ran = run_script(code)
    assert ran.outcome == "error"
    assert "the sandbox does not allow" in ran.output


def test_the_sandbox_keeps_writes_inside_its_folder_and_hides_our_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside = tmp_path / "outside.txt"
    ran = run_script(f"open({str(outside)!r}, 'w').write('x')")
    assert "the sandbox does not allow to change" in ran.output
    assert not outside.exists()
    monkeypatch.setenv("SOME_SECRET", "hush")
    assert "hush" not in run_script("import os; print(dict(os.environ))").output
    # A huge file ends the script, and a link is not followed.
    ran = run_script("open('a', 'wb').write(bytes(1 << 20))", limits=Limits(file_bytes=1 << 16), wanted=("a",))
    assert ran.outcome in ("error", "killed")


def test_the_sandbox_leaves_no_process_behind() -> None:
    before = time.monotonic()
    run_script("import time; time.sleep(60)", limits=Limits(wall_s=0.5))
    assert time.monotonic() - before < 30
    with pytest.raises(UserError, match="above 0"):
        Limits(cpu_s=0)


def check_step(step: str) -> None:
    """Hold every "a + b = c" of a step to the arithmetic."""
    for left, right in re.findall(r"(?<![\w/²(-])(\d[\d\s.+×/-]*[+×/-]\s?[\d.]+) = (-?\d+(?:\.\d+)?(?:/\d+)?)", step):
        terms = re.sub(r"\s", "", left).replace("×", "*")
        total = Fraction(0)
        for sign, product in re.findall(r"([+-]?)([^+-]+)", terms):
            value = Fraction(1)
            for operator, number in re.findall(r"([*/]?)([\d.]+)", product):
                value = value / Fraction(number) if operator == "/" else value * Fraction(number)
            total += -value if sign == "-" else value
        assert total == Fraction(right), step


@pytest.mark.parametrize("task", sorted(PROBLEMS))
def test_worked_steps_are_right_and_end_in_the_answer(task: str) -> None:
    for seed in range(40):
        problem = PROBLEMS[task](random.Random(seed))
        for step in problem.steps:
            check_step(step)
        assert problem.worked.endswith(f"The answer is {problem.answer}.")
        last = problem.answer.removeprefix("x = ").split(" remainder ")[-1]
        assert last in problem.steps[-1]


def test_arithmetic_has_a_concise_form() -> None:
    for record in generate(Arithmetic(form="concise"), 10):
        assert (record.messages[0].parts[-1].text or "").endswith("Answer with the final result only.")
        assert "\n" not in (record.messages[1].parts[0].text or "")
    assert all("The answer is" in (r.messages[1].parts[0].text or "") for r in generate(Arithmetic(form="worked"), 10))
