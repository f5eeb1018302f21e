"""Where the kernels come from, and that nothing but speed is lost where they cannot be had."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from vl2.kernels import library
from vl2.kernels.build import (
    COMMON_FLAGS,
    PORTABLE,
    Level,
    build,
    file_name,
    find_compiler,
    levels,
    source_hash,
    supported_levels,
)


@pytest.fixture
def _nothing_built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(library, "BUILT", tmp_path / "package")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def portable(tmp_path_factory: pytest.TempPathFactory) -> Path | None:
    """The library of every processor, built into the cache once for this file: it takes many seconds."""
    folder = tmp_path_factory.mktemp("portable")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "BUILT", folder / "package")
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        found = library._load(PORTABLE)
    return None if found is None else found.path


@pytest.mark.slow
@pytest.mark.parametrize("level", levels(), ids=lambda level: level.name)
def test_every_level_compiles(level: Level, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those that this processor lacks: where one does not compile, the machines that have it are slow.

    Without optimization, which takes most of the time and finds no errors.
    """
    compiler = find_compiler()
    if compiler is None:
        pytest.skip("no compiler here")
    assert "-O3" in COMMON_FLAGS
    monkeypatch.setattr("vl2.kernels.build.COMMON_FLAGS", [flag.replace("-O3", "-O0") for flag in COMMON_FLAGS])
    assert build(level, tmp_path, compiler).is_file()


def test_where_there_is_a_compiler_the_best_kernels_are_in_use() -> None:
    """Tests that need kernels are skipped without them, so this one must fail."""
    if find_compiler() is None:
        pytest.skip("no compiler here")
    found = library.kernels_of_level("")
    assert found is not None, library.missed
    assert found.level == supported_levels()[0].name, library.missed


@pytest.mark.usefixtures("_nothing_built")
def test_without_a_compiler_there_are_no_kernels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_compiler() is None
    monkeypatch.setattr(library, "missed", {})
    assert library._load(PORTABLE) is None
    assert library.missed == {"portable": "there is no C++ compiler"}


@pytest.mark.usefixtures("_nothing_built")
def test_a_file_that_cannot_be_opened_gives_way_to_one_that_can(
    monkeypatch: pytest.MonkeyPatch, portable: Path | None
) -> None:
    if portable is None:
        pytest.skip("no compiler here")
    library.cache_folder().mkdir(parents=True)
    shutil.copy(portable, library.cache_folder())  # as if built into the cache
    found = library._load(PORTABLE)
    assert found is not None
    assert found.path.parent == library.cache_folder()
    library.BUILT.mkdir()
    (library.BUILT / file_name(PORTABLE)).write_bytes(b"torn")
    monkeypatch.setattr(library, "missed", {})
    again = library._load(PORTABLE)
    assert again is not None
    assert again.path == found.path
    found.path.unlink()
    found.path.write_bytes(b"")
    built = library._load(PORTABLE)
    assert built is not None
    assert library.missed == {}


def test_without_a_home_the_package_has_its_kernels_all_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(library, "cache_folder", nowhere)
    monkeypatch.setattr(library, "missed", {})
    monkeypatch.setattr(library, "BUILT", tmp_path)
    assert library._load(PORTABLE) is None
    assert library.missed.keys() == {"portable"}
    (tmp_path / file_name(PORTABLE)).write_bytes(b"torn")
    assert [path.parent for path in library._places(PORTABLE)] == [tmp_path]


@pytest.mark.usefixtures("_nothing_built")
def test_a_compiler_that_fails_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho 'no such flag' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    with pytest.raises(RuntimeError, match="no such flag"):
        build(PORTABLE, tmp_path / "out", str(broken))
    assert list((tmp_path / "out").iterdir()) == []
    monkeypatch.setattr(library, "missed", {})
    monkeypatch.setattr(library, "load_kernels", lambda: None)
    assert library._load(PORTABLE) is None
    said = library.describe_kernels()
    assert said.startswith("none; portable could not be had: ")
    assert said.endswith("could not build the kernels: no such flag")


@pytest.mark.usefixtures("_nothing_built")
def test_kernels_that_are_missing_are_named_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(library, "missed", {})
    library.kernels_of_level.cache_clear()
    try:
        assert library.kernels_of_level("portable") is None
        assert library.kernels_of_level("portable") is None
    finally:
        library.kernels_of_level.cache_clear()
    assert [record.getMessage() for record in caplog.records] == [
        "vl2: slower than this machine allows: kernels are missing (portable: there is no C++ compiler), "
        "PyTorch's own are used"
    ]


@pytest.mark.usefixtures("_nothing_built")
def test_a_damaged_library_is_not_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(library, "find_compiler", lambda: None)
    folder = tmp_path / "package"
    folder.mkdir()
    (folder / file_name(PORTABLE)).write_bytes(b"not a library")
    assert library._load(PORTABLE) is None


def test_a_library_is_of_the_sources_that_are_here() -> None:
    assert source_hash() in file_name(PORTABLE)
    assert supported_levels()[-1] == PORTABLE
    found = library.load_kernels()
    assert found is None or source_hash() in found.path.name


@pytest.mark.skipif(not Path("/proc/self/maps").is_file(), reason="only Linux says which libraries are loaded")
def test_threads_are_those_of_torch() -> None:
    found = library.load_kernels()
    if found is None:
        pytest.skip("no compiler here, and no kernels were built before")
    assert found.shares_threads == torch.backends.openmp.is_available()
