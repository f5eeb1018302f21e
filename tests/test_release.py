"""What is released: wheels, versions, changelog, workflows."""

from __future__ import annotations

import importlib.util
import platform
import re
import sys
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData

import vl2

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
HEADINGS = ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security")  # of Keep a Changelog, in its order
PYTHONS = ["3.10", "3.11", "3.12", "3.13", "3.14"]


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"released_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def hatch_build(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The build hook. hatchling is there while a package is built, not where it is tested."""
    interface = ModuleType("interface")
    interface.BuildHookInterface = object  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "hatchling.builders.hooks.plugin.interface", interface)
    for name in ("hatchling", "hatchling.builders", "hatchling.builders.hooks", "hatchling.builders.hooks.plugin"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    return load(ROOT / "hatch_build.py")


@pytest.mark.parametrize(
    "tags",
    [
        ["manylinux_2_41_x86_64", "manylinux2014_x86_64", "linux_x86_64"],  # packaging up to 25
        ["linux_x86_64", "manylinux_2_41_x86_64"],  # and later
        ["musllinux_1_2_x86_64", "linux_x86_64"],
    ],
)
def test_a_build_never_claims_manylinux_or_musllinux_itself(
    hatch_build: ModuleType, monkeypatch: pytest.MonkeyPatch, tags: list[str]
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(hatch_build, "platform_tags", lambda: iter(tags))
    assert hatch_build._platform_tag() == "linux_x86_64"


@pytest.mark.parametrize(
    ("target", "tag"), [("11.0", "macosx_11_0_arm64"), ("12", "macosx_12_0_arm64"), (None, "macosx_15_0_arm64")]
)
def test_a_build_on_a_mac_is_for_the_system_that_it_was_compiled_for(
    hatch_build: ModuleType, monkeypatch: pytest.MonkeyPatch, target: str | None, tag: str
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(platform, "mac_ver", lambda: ("15.1", ("", "", ""), "arm64"))
    if target is None:
        monkeypatch.delenv("MACOSX_DEPLOYMENT_TARGET", raising=False)
    else:
        monkeypatch.setenv("MACOSX_DEPLOYMENT_TARGET", target)
    assert hatch_build._platform_tag() == tag


def make_wheel(folder: Path, tag: str, levels: tuple[str, ...], data: set[str]) -> Path:
    path = folder / f"vl2-0.1.0-{tag}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name in [*data, *(f"vl2/kernels/lib/libvl2-{level}-{n:016x}.so" for n, level in enumerate(levels))]:
            archive.writestr(name, "")
    return path


ALL_X86 = ("amx", "avx512", "avx2", "portable")
ALL_ARM = ("neon_bf16", "neon_dotprod", "neon", "portable")


@pytest.mark.parametrize(
    ("tag", "levels", "fault"),
    [
        ("py3-none-manylinux_2_27_x86_64.manylinux_2_28_x86_64", ALL_X86, None),
        ("py3-none-musllinux_1_2_aarch64", ALL_ARM, None),
        ("py3-none-macosx_11_0_arm64", ALL_ARM, None),
        ("py3-none-macosx_11_0_arm64", ("portable",), "it has kernels for ['portable']"),
        ("py3-none-any", (), None),
        ("py3-none-linux_x86_64", ALL_X86, "auditwheel has not repaired it"),
        ("py3-none-manylinux_2_28_x86_64", ALL_X86[1:], "['amx', 'avx2', 'avx512', 'portable'] are wanted"),
        ("py3-none-manylinux_2_28_x86_64", (*ALL_X86, "amx"), "it has kernels for ['amx', 'amx',"),  # of older sources
        ("py3-none-any", ("portable",), "[] are wanted"),
        ("cp312-cp312-manylinux_2_28_x86_64", ALL_X86, "py3-none is wanted"),
        ("py3-none-win_amd64", (), "win_amd64 is not known here"),
    ],
)
def test_a_wheel_with_other_kernels_than_its_tag_says_is_found(
    tmp_path: Path, tag: str, levels: tuple[str, ...], fault: str | None
) -> None:
    check_wheels = load(ROOT / "tools" / "check_wheels.py")
    faults = check_wheels.find_faults(make_wheel(tmp_path, tag, levels, check_wheels.DATA))
    assert len(faults) == (0 if fault is None else 1), faults
    assert fault is None or fault in faults[0]


def test_a_wheel_without_a_file_of_the_package_is_found(tmp_path: Path) -> None:
    check_wheels = load(ROOT / "tools" / "check_wheels.py")
    made = make_wheel(tmp_path, "py3-none-any", (), check_wheels.DATA - {"vl2/nano/model.safetensors"})
    assert check_wheels.find_faults(made) == ["vl2/nano/model.safetensors is missing"]


def test_the_check_of_wheels_ends_well_or_names_the_wheel_at_fault(tmp_path: Path) -> None:
    check_wheels = load(ROOT / "tools" / "check_wheels.py")
    good, bad = (make_wheel(tmp_path, f"py3-none-{on}", (), check_wheels.DATA) for on in ("any", "win32"))
    check_wheels.main([good])
    with pytest.raises(SystemExit, match=f"^{re.escape(bad.name)}: the platform win32 is not known here$"):
        check_wheels.main([good, bad])
    with pytest.raises(SystemExit, match="no wheels"):
        check_wheels.main([])


def test_the_files_that_a_wheel_is_checked_for_are_in_the_package() -> None:
    for name in load(ROOT / "tools" / "check_wheels.py").DATA:
        assert (ROOT / "src" / name).is_file(), name


def test_every_file_says_the_same_version() -> None:
    versions = load(ROOT / "tools" / "release_notes.py").read_versions(ROOT)
    assert set(versions.values()) == {vl2.__version__}


def write_release(folder: Path, citation: str = "0.1.0", changelog: str = "## [0.1.0] - 2026-12-01\n\nNew.\n") -> None:
    (folder / "src" / "vl2").mkdir(parents=True)
    (folder / "pyproject.toml").write_text('name = "vl2"\nversion = "0.1.0"\n')
    (folder / "src" / "vl2" / "__init__.py").write_text('__version__ = "0.1.0"\n')
    (folder / "CITATION.cff").write_text(f"cff-version: 1.2.0\nversion: {citation}\n")
    (folder / "CHANGELOG.md").write_text(f"# Changelog\n\n{changelog}")


def test_the_notes_of_a_release_are_its_section_of_the_changelog(tmp_path: Path) -> None:
    changelog = "## [Unreleased]\n\nLater.\n\n## [0.1.0] - 2026-12-01\n\n### Added\n\n- This.\n\n## [0.0.1]\n\nOld.\n"
    write_release(tmp_path, changelog=changelog)
    assert load(ROOT / "tools" / "release_notes.py").main("v0.1.0", tmp_path) == "### Added\n\n- This."


@pytest.mark.parametrize(
    ("tag", "release", "says"),
    [
        ("v0.2.0", {}, "the tag is v0.2.0, and pyproject.toml says 0.1.0"),
        ("v0.1.0", {"citation": "0.0.9"}, "CITATION.cff says 0.0.9"),
        ("v0.1.0", {"changelog": "## [Unreleased]\n\nAll.\n"}, "CHANGELOG.md has nothing under [0.1.0]"),
    ],
)
def test_a_tag_that_does_not_fit_the_files_is_refused(
    tmp_path: Path, tag: str, release: dict[str, str], says: str
) -> None:
    write_release(tmp_path, **release)
    with pytest.raises(SystemExit, match=re.escape(says)):
        load(ROOT / "tools" / "release_notes.py").main(tag, tmp_path)


def test_each_section_of_the_changelog_has_a_heading_once() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    sections = re.split(r"^## ", changelog, flags=re.M)[1:]
    names = [section.split("\n", 1)[0].split(" ")[0] for section in sections]
    assert len(names) == len(set(names)) > 0
    for section in sections:
        headings = re.findall(r"^### (.+)$", section, re.M)
        assert headings == [
            h for h in ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security") if h in headings
        ]


def jobs(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]
    return found


def test_the_tests_run_on_every_system_with_every_python_that_is_promised() -> None:
    tests = jobs(ROOT / ".github" / "workflows" / "tests.yml")
    unix, windows = tests["make"]["strategy"]["matrix"], tests["windows"]["strategy"]["matrix"]
    assert [system.split("-")[0] for system in unix["os"]] == ["ubuntu", "macos"]
    assert unix["python"] == windows["python"] == PYTHONS
    assert PROJECT["requires-python"] == f">={PYTHONS[0]}"
    promised = [text.rpartition(" ")[2] for text in PROJECT["classifiers"] if "Python :: 3." in text]
    assert promised == PYTHONS


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_pinned_and_permissions_are_given_job_by_job(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for action in re.findall(r"uses: (.+)$", text, re.M):
        assert re.match(r"\./|[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$", action), action
    assert yaml.safe_load(text)["permissions"] == {}
    assert all("permissions" in job for job in jobs(path).values())


def test_only_the_release_may_write() -> None:
    may_write = {
        (path.name, name): sorted(what for what, how in job["permissions"].items() if how == "write")
        for path in WORKFLOWS
        for name, job in jobs(path).items()
        if "write" in job["permissions"].values()
    }
    assert may_write == {
        ("release.yml", "github"): ["contents"],
        ("release.yml", "pypi"): ["id-token"],
        ("release.yml", "image"): ["packages"],
    }


def test_nothing_is_uploaded_to_an_index_before_its_name_is_confirmed() -> None:
    assert jobs(ROOT / ".github" / "workflows" / "release.yml")["pypi"]["if"] == "vars.PYPI_PROJECT == 'vl2'"


CARD = ROOT / "src" / "vl2" / "nano" / "README.md"


def test_the_card_of_the_built_in_model_is_one_of_the_hub() -> None:
    data = ModelCard.load(CARD).data
    assert (data.license, data.language, data.library_name) == ("apache-2.0", ["en", "zh"], "vl2")
    assert data.pipeline_tag == "image-text-to-text"
    assert data.model_name == "nano"
    assert data.eval_results
    # Written again, it says the same.
    assert ModelCardData(**data.to_dict()).to_dict() == data.to_dict()


def test_the_figures_of_the_card_are_those_of_its_metadata() -> None:
    card = ModelCard.load(CARD)
    rows = {}
    for line in re.findall(r"^\| .+ \|$", card.text.partition("## Evaluation")[2], re.MULTILINE):
        name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        rows[name.lower()] = cells
    for result in card.data.eval_results or []:
        cells = rows[result.dataset_name.lower()]
        interval = str(result.metric_name).rpartition("interval ")[2]
        assert cells == [result.dataset_split, str(result.metric_value), interval]


def test_the_figures_of_the_card_are_those_of_the_page_about_the_model() -> None:
    """The page says how they were measured."""
    said = (ROOT / "docs" / "nano.md").read_text(encoding="utf-8")
    for result in ModelCard.load(CARD).data.eval_results or []:
        interval = str(result.metric_name).rpartition("interval ")[2]
        assert f"{result.metric_value} ({interval})" in said


def test_a_package_has_links_that_lead_somewhere(tmp_path: Path) -> None:
    for name in ("README.md", "pyproject.toml"):
        (tmp_path / name).write_text((ROOT / name).read_text(encoding="utf-8"), encoding="utf-8")
    load(ROOT / "tools" / "set_home.py").main("https://github.com/someone/vl2/", "abc123", tmp_path)
    readme = (tmp_path / "README.md").read_text(encoding="utf-8")
    before = re.findall(r"(!?)\[[^\[\]]*\]\(([^)]+)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    after = re.findall(r"(!?)\[[^\[\]]*\]\(([^)]+)\)", readme)
    assert len(before) == len(after) > 20
    assert sum(mark == "!" for mark, _ in before) >= 2
    for (mark, old), (_, new) in zip(before, after, strict=True):
        if "://" in old:
            assert new == old
        elif mark:
            assert new == f"https://raw.githubusercontent.com/someone/vl2/abc123/{old}"
        else:
            assert new == f"https://github.com/someone/vl2/blob/abc123/{old}"
    urls = tomllib.loads((tmp_path / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]
    assert urls["Homepage"] == "https://github.com/someone/vl2"
    assert PROJECT["urls"].items() <= urls.items()


def test_a_home_that_is_no_address_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="an address such as"):
        load(ROOT / "tools" / "set_home.py").main("vl2", "abc123", tmp_path)


def test_every_package_is_built_with_the_address_of_its_repository() -> None:
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "wheels.yml").read_text(encoding="utf-8"))["jobs"]
    for job in jobs.values():
        commands = [step.get("run", "") for step in job["steps"]]
        builds = [
            place for place, command in enumerate(commands) if "cibuildwheel -" in command or "-m build" in command
        ]
        if builds:
            assert any("set_home.py" in command for command in commands[: builds[0]])
