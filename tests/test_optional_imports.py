"""How to install what is missing: one place says it, and what it says can be typed."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from vl2 import optional_imports
from vl2.errors import UserError
from vl2.optional_imports import import_extra, install_extra, install_packages

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "vl2"

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]


class Installed:
    """A distribution as `importlib.metadata` gives it."""

    def __init__(self, url: str | None = None, **more: object) -> None:
        self.requires = ["torch>=2.11", 'fastapi>=0.115; extra == "serve"', "uvicorn>=0.32 ; extra == 'serve'"]
        self._record = None if url is None else json.dumps({"url": url, **more})

    def read_text(self, name: str) -> str | None:
        return self._record if name == "direct_url.json" else None


@pytest.fixture
def outside_a_checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(optional_imports, "CHECKOUT", tmp_path)


def found(monkeypatch: pytest.MonkeyPatch, installed: Installed) -> None:
    monkeypatch.setattr("importlib.metadata.distribution", lambda name: installed)


def test_only_one_module_says_how_to_install() -> None:
    writing = [path.name for path in SOURCE.rglob("*.py") if "pip install" in path.read_text(encoding="utf-8")]
    assert writing == ["optional_imports.py"]
    text = "".join(
        path.read_text(encoding="utf-8") for path in SOURCE.rglob("*") if path.suffix in (".py", ".js", ".html")
    )
    named = set(re.findall(r"install_extra\(['\"]([\w-]+)['\"]\)", text))
    assert named
    assert named <= set(EXTRAS)


def test_in_a_checkout_the_checkout_is_named() -> None:
    assert shlex.split(install_extra("serve")) == ["pip", "install", "-e", f"{ROOT}[serve]"]


@pytest.mark.usefixtures("outside_a_checkout")
def test_what_came_from_a_wheel_names_the_wheel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wheel = tmp_path / "with blank" / "vl2-0.1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    wheel.write_bytes(b"")
    found(monkeypatch, Installed(wheel.as_uri(), archive_info={}))
    assert shlex.split(install_extra("serve")) == ["pip", "install", f"vl2[serve] @ {wheel.as_uri()}"]
    wheel.unlink()
    assert shlex.split(install_extra("serve")) == ["pip", "install", "fastapi>=0.115", "uvicorn>=0.32"]


@pytest.mark.usefixtures("outside_a_checkout")
def test_what_came_from_a_repository_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    found(monkeypatch, Installed("https://example.org/vl2.git", vcs_info={"vcs": "git", "commit_id": "0" * 40}))
    assert shlex.split(install_extra("pdf")) == ["pip", "install", "vl2[pdf] @ git+https://example.org/vl2.git"]


@pytest.mark.usefixtures("outside_a_checkout")
@pytest.mark.parametrize("record", [None, "no url"])
def test_where_nothing_is_known_the_packages_are_named(monkeypatch: pytest.MonkeyPatch, record: str | None) -> None:
    installed = Installed()
    installed._record = record
    found(monkeypatch, installed)
    assert shlex.split(install_extra("serve")) == ["pip", "install", "fastapi>=0.115", "uvicorn>=0.32"]


def test_packages_are_quoted_where_a_shell_would_read_them_otherwise() -> None:
    assert install_packages("vllm", "ray[data]>=2") == 'pip install vllm "ray[data]>=2"'


def test_a_module_of_an_extra_is_imported_or_named_with_the_command_that_installs_it() -> None:
    assert import_extra("json.decoder", "documents", "scoring").JSONDecoder is json.JSONDecoder
    with pytest.raises(UserError, match=r"^scoring tables needs no_such_library: pip install .*\[documents\]"):
        import_extra("no_such_library.part", "documents", "scoring tables")


def test_an_installed_module_that_lacks_another_one_is_not_called_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "half_a_library.py").write_text("import no_such_library\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_library"):
        import_extra("half_a_library", "documents", "scoring tables")
