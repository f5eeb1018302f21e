"""The shape of the project: who imports whom, what it depends on, what its data files hold."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import vl2
from vl2.config import preset
from vl2.process.tiling import candidate_canvases

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "vl2"

SHARED = {
    "config",
    "deep_encoder_config",
    "dtypes",
    "errors",
    "grid",
    "html_page",
    "batch",
    "files",
    "model_kind",
    "rope_scaling",
    "optional_imports",
    "progress",
    "resumable_log",
    "process_tuning",
    "timing",
}
# What each package or module of vl2 may import from the others. A new one needs a line here.
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "config": {"errors", "deep_encoder_config", "grid", "model_kind", "rope_scaling"},
    "deep_encoder_config": {"errors"},
    "model_kind": {"errors"},
    "rope_scaling": {"errors"},
    "grid": {"errors", "model_kind"},
    "batch": {"errors", "grid"},
    "dtypes": set(),
    "files": {"errors", "optional_imports"},
    "optional_imports": {"errors"},
    "html_page": set(),
    "progress": set(),
    "resumable_log": {"errors"},
    "process_tuning": set(),
    "timing": set(),
    "__main__": {"cli", "vl2"},
    "process": SHARED,
    "model": SHARED,
    "kernels": SHARED,
    "quant": SHARED | {"model", "kernels"},
    "checkpoint": SHARED | {"model", "quant"},
    "assemble": SHARED | {"model", "process", "checkpoint"},
    "lora": SHARED | {"model", "checkpoint"},
    "runtime": SHARED | {"model", "kernels", "quant"},
    "infer": SHARED | {"model", "process", "checkpoint", "lora", "quant", "kernels", "runtime"},
    "answer_log": SHARED | {"process"},
    "batch_job": SHARED | {"process", "infer"},
    "extract": SHARED | {"process", "infer", "batch_job"},
    "documents": SHARED | {"process", "infer", "batch_job"},
    "mcp_server": SHARED | {"process", "infer", "batch_job", "extract", "vl2"},
    "serve": SHARED | {"process", "infer", "lora", "vl2", "answer_log"},
    "hf": SHARED | {"model", "process", "checkpoint", "infer"},
    "data": SHARED | {"process"},
    "synth": SHARED | {"process", "data"},
    "datasets": SHARED | {"process", "data", "synth"},  # what is fetched as emoji is a sprite set
    "curate": SHARED | {"process", "data", "synth", "datasets"},  # a stage is built of all three
    # "synth" draws the drawn tests; of "curate" the judge takes the client of the jobs.
    "eval": SHARED | {"process", "checkpoint", "infer", "data", "datasets", "synth", "curate"},
    "bench": SHARED | {"model", "process", "infer", "kernels", "quant", "runtime", "train", "checkpoint", "vl2"},
    "verify": SHARED | {"process", "checkpoint", "infer", "kernels", "runtime", "bench", "data", "hf", "vl2"},
    "train": SHARED
    | {"model", "process", "quant", "checkpoint", "data", "datasets", "infer", "eval", "lora", "kernels", "runtime"},
    "expert_parallel": SHARED | {"model", "checkpoint", "runtime", "train"},  # of "train" the ranks
    "plan": SHARED | {"model", "process", "data", "train"},
    # "vl2": the public names
    "cli": SHARED
    | {
        "process",
        "checkpoint",
        "infer",
        "data",
        "synth",
        "datasets",
        "curate",
        "hf",
        "vl2",
        "eval",
        "train",
        "expert_parallel",
        "lora",
        "serve",
        "plan",
        "quant",
        "kernels",
        "runtime",
        "batch_job",
        "extract",
        "documents",
        "mcp_server",
        "answer_log",
        "bench",
        "verify",
        "assemble",
    },
    "__init__": SHARED | {"model", "process", "checkpoint", "infer"},
}


def test_what_the_build_reads_is_in_the_image() -> None:
    copied = {
        word
        for line in (ROOT / "deploy" / "Dockerfile").read_text().splitlines()
        if line.startswith("COPY")
        for word in line.split()[1:-1]
    }
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project, wheel = build["project"], build["tool"]["hatch"]["build"]["targets"]["wheel"]
    read = {project["readme"], *project["license-files"], wheel["hooks"]["custom"]["path"], "pyproject.toml"}
    assert {path for path in read if path not in copied and path.split("/")[0] not in copied} == set()
    assert {path.split("/")[0] for path in wheel["packages"]} <= copied


WITH_PROCESS_GROUPS = (
    "train/ranks.py",
    "train/shard.py",
    "train/parallel/rank_layout.py",
    "train/parallel/schedules.py",
    "train/parallel/tensor_parallel.py",
)

# Trap R15: packages that the released code pins or builds, which made it impossible to install.
NEVER_NEEDED = ("xformers", "flash-attn", "timm", "attrdict", "deepspeed", "megatron", "transformers", "torchvision")


def owner(path: Path) -> str:
    """Return the package or module of vl2 that a source file belongs to."""
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported_modules(path: Path) -> Iterator[str]:
    """Yield every module or name that a file imports, dotted, wherever in the file the import stands."""
    package = ("vl2", *path.relative_to(SOURCE).parts[:-1])
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            # An import by name: whatever the file could name, from its tables of modules.
            named = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
            modules = [name for name in named if re.fullmatch(r"vl2(\.\w*)+", name)]
            assert modules, f"{path} imports by a name that cannot be checked"
            yield from modules


def imported_owner(module: str) -> str | None:
    """Return the part of vl2 that a dotted name belongs to; "vl2" for a public name; None if it is not ours."""
    if module.split(".")[0] != "vl2":
        return None
    name = [*module.split("."), ""][1]
    return name if (SOURCE / name).is_dir() or (SOURCE / f"{name}.py").is_file() else "vl2"


SOURCE_FILES = sorted(SOURCE.rglob("*.py"))


def test_the_project_has_source_files() -> None:
    assert len(SOURCE_FILES) > 20


@pytest.mark.parametrize("path", SOURCE_FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_follow_the_directions(path: Path) -> None:
    here = owner(path)
    assert here in MAY_IMPORT, f"{here} is new: say in MAY_IMPORT whom it may import"
    forbidden = {
        module
        for module in imported_modules(path)
        if (there := imported_owner(module)) is not None and there != here and there not in MAY_IMPORT[here]
    }
    assert not forbidden, f"{here} may import {sorted(MAY_IMPORT[here])} only"
    assert not [module for module in imported_modules(path) if module.split(".")[0] == "experiments"]


@pytest.mark.parametrize("path", SOURCE_FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_transformers_and_torch_distributed_stay_where_they_belong(path: Path) -> None:
    modules = list(imported_modules(path))
    if owner(path) != "hf":
        assert not [m for m in modules if m.split(".")[0] in ("transformers", "peft")]
    if str(path.relative_to(SOURCE)) in WITH_PROCESS_GROUPS:
        return
    assert not [m for m in modules if m.startswith("torch.distributed")]
    assert not re.search(r"\btorch\.distributed\b", path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", sorted((SOURCE / "model").glob("*.py")), ids=lambda path: path.name)
def test_the_model_names_no_kernel_runner_or_rank(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    names |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    names |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg | ast.keyword) and node.arg is not None}
    names |= {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    words = {word for name in names - {"kernel_size"} for word in re.split(r"_|(?<=[a-z])(?=[A-Z])", name)}
    assert not {word.lower() for word in words} & {"kernel", "kernels", "runner", "rank0", "ranks", "blank", "decode"}
    assert "__class__" not in names


def test_every_public_name_loads_when_first_used() -> None:
    for name in vl2.__all__:
        assert getattr(vl2, name).__name__ == name.replace("quantise", "quantize")  # of which one name is kept
    with pytest.raises(AttributeError, match="nothing_here"):
        vl2.nothing_here  # noqa: B018


def requirement_name(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match, requirement
    return re.sub(r"[-_.]+", "-", match[0]).lower()


def project_table() -> dict[str, object]:
    table: dict[str, object] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return table


def test_r15_installing_needs_none_of_the_packages_that_made_the_released_code_uninstallable() -> None:
    requirements = project_table()["dependencies"]
    assert isinstance(requirements, list)
    names = {requirement_name(r) for r in requirements}
    assert names == {"torch", "numpy", "pillow", "safetensors", "tokenizers", "huggingface-hub", "rich", "tyro"}
    assert not names & set(NEVER_NEEDED)


def test_r15_no_requirement_has_an_upper_bound_so_that_newer_pythons_can_install_it() -> None:
    table = project_table()
    extras = table["optional-dependencies"]
    assert isinstance(table["dependencies"], list)
    assert isinstance(extras, dict)
    for requirement in [*table["dependencies"], *(r for extra in extras.values() for r in extra)]:
        assert not re.search(r"[<!~]|==", requirement.split(";")[0]), requirement
    assert table["requires-python"] == ">=3.10"


def test_r15_importing_loads_none_of_those_packages_and_prints_nothing() -> None:
    program = (
        "import sys, vl2, vl2.cli.main\n"
        f"names = {[name.replace('-', '_') for name in NEVER_NEEDED]!r}\n"
        "sys.exit(' '.join(name for name in names if name in sys.modules) or None)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("name", ["tiny", "small", "base", "nano"])
def test_a_preset_writes_back_exactly_its_file(name: str) -> None:
    path = SOURCE / "nano" / "config.json" if name == "nano" else SOURCE / "presets" / f"{name}.config.json"
    assert preset(name).to_dict() == json.loads(path.read_text(encoding="utf-8"))


def test_the_processor_offers_the_grids_that_the_configuration_lists() -> None:
    released = json.loads((SOURCE / "presets" / "processor_config.json").read_text(encoding="utf-8"))
    for name in ("tiny", "small", "base"):
        assert preset(name).to_dict()["candidate_resolutions"] == released["candidate_resolutions"]
    nano = json.loads((SOURCE / "nano" / "processor_config.json").read_text(encoding="utf-8"))
    assert preset("nano").to_dict()["candidate_resolutions"] == nano["candidate_resolutions"]
    assert nano["candidate_resolutions"] == [list(canvas) for canvas in candidate_canvases(168, 20)]


def tree_paths(block: str) -> list[str]:
    """Return the paths that a drawn file tree names: one or more names a line, then two blanks and a remark."""
    paths: list[str] = []
    folders: list[tuple[int, str]] = []
    for line in block.splitlines():
        text = re.sub(r"[│├└─]", " ", line)
        names = re.split(r"\s{2,}|#", text.strip())[0].split()
        if not names:
            continue
        indent = len(text) - len(text.lstrip())
        folders = [(depth, name) for depth, name in folders if depth < indent]
        parent = "".join(name for _, name in folders)
        paths += [parent + name for name in names]
        if names[0].endswith("/"):
            folders.append((indent, names[0]))
    return paths


def test_the_file_tree_in_the_architecture_names_only_files_that_exist() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    trees = re.findall(r"^```text\n(src/vl2/\n.*?)^```", page, re.M | re.S)
    assert len(trees) == 1
    paths = tree_paths(trees[0])
    assert [path for path in paths if not (ROOT / path).exists()] == []
    assert len(paths) > 1


@pytest.mark.parametrize("name", ["README.md", "README.zh.md"])
def test_a_readme_is_short(name: str) -> None:
    assert len((ROOT / name).read_text(encoding="utf-8").splitlines()) <= 120


def test_a_drawn_tree_is_read_with_its_folders_and_remarks() -> None:
    lines = ("src/vl2/", "  config.py    sizes", "  model/       layers", "    rope.py moe.py", "  cli/  # commands")
    expected = ["src/vl2/", "config.py", "model/", "model/rope.py", "model/moe.py", "cli/"]
    assert tree_paths("\n".join(lines)) == [expected[0], *(expected[0] + name for name in expected[1:])]


def test_the_package_data_is_there() -> None:
    for name in ("py.typed", "presets/processor_config.json", "nano/config.json", "nano/processor_config.json",
                 "nano/tokenizer.json", "nano/tokenizer_config.json", "nano/README.md",
                 "nano/model.safetensors"):  # fmt: skip
        assert (SOURCE / name).is_file(), name


def test_every_benchmark_is_in_the_list_of_benchmarks() -> None:
    folder = ROOT / "benchmarks"
    listed = set(re.findall(r"^\| `([\w.]+)` \|", (folder / "README.md").read_text(encoding="utf-8"), re.M))
    assert listed == {path.name for path in folder.iterdir() if path.suffix in (".py", ".sh", ".cpp")}


def heading_anchors(document: Path) -> set[str]:
    """Return the anchors that GitHub gives the headings of a document."""
    anchors: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), re.M):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        anchors.add(re.sub(r"[^\w\- ]", "", text).replace(" ", "-"))
    return anchors


def broken_links(document: Path) -> list[str]:
    """Return the links of a document to files and headings that are not there."""
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)[^)]*\)", document.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = document.parent / path if path else document
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in heading_anchors(file)):
            broken.append(target)
    return broken


def test_links_in_the_documents_lead_to_files_and_headings() -> None:
    documents = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "benchmarks" / "README.md"]
    for document in [*documents, SOURCE / "nano" / "README.md"]:
        assert broken_links(document) == [], document.name


def test_links_in_the_notebooks_lead_to_files() -> None:
    notebooks = sorted((ROOT / "docs").rglob("*.ipynb"))
    assert notebooks
    for notebook in notebooks:
        assert broken_links(notebook) == [], notebook.name


def test_a_link_to_a_heading_that_is_not_there_is_found(tmp_path: Path) -> None:
    (tmp_path / "b.md").write_text("# The `vl2 plan` command, [in short](c.md): 2 x 2\n")
    page = tmp_path / "a.md"
    links = "[1](b.md#the-vl2-plan-command-in-short-2-x-2) [2](#here) [3](b.md#no) [4](no.md) [5](https://no/)"
    page.write_text(f"{links}\n\n## Here\n")
    assert broken_links(page) == ["b.md#no", "no.md"]
