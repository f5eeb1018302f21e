"""Averaged weights lie between the two checkpoints, and what cannot be averaged is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from experiments.nano.average import WEIGHTS, average
from vl2.errors import UserError


def checkpoint(folder: Path, **tensors: torch.Tensor) -> Path:
    folder.mkdir()
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / "config.json").write_text("{}")
    return folder


def test_each_weight_is_between_the_two(tmp_path: Path) -> None:
    before = checkpoint(tmp_path / "a", w=torch.zeros(2).bfloat16(), bias=torch.tensor([4.0]))
    after = checkpoint(tmp_path / "b", w=torch.tensor([4.0, -8.0]).bfloat16(), bias=torch.tensor([8.0]))
    average(before, after, 0.75, tmp_path / "c")
    found = load_file(tmp_path / "c" / WEIGHTS)
    assert found["w"].dtype == torch.bfloat16
    assert found["w"].tolist() == [3.0, -6.0]
    assert found["bias"].tolist() == [7.0]
    assert (tmp_path / "c" / "config.json").is_file()


def test_what_cannot_be_averaged_is_refused(tmp_path: Path) -> None:
    one = checkpoint(tmp_path / "a", w=torch.zeros(2))
    with pytest.raises(UserError, match="do not hold the same tensors"):
        average(one, checkpoint(tmp_path / "b", v=torch.zeros(2)), 0.5, tmp_path / "z")
    with pytest.raises(UserError, match=r"w is \[2\]"):
        average(one, checkpoint(tmp_path / "c", w=torch.zeros(3)), 0.5, tmp_path / "z")
    with pytest.raises(UserError, match="from 0 to 1"):
        average(one, one, 1.5, tmp_path / "z")
    with pytest.raises(UserError, match="is there already"):
        average(one, one, 0.5, one)
    with pytest.raises(UserError, match="has no"):
        average(one, tmp_path / "none", 0.5, tmp_path / "z")
    codes = checkpoint(tmp_path / "d", w=torch.zeros(2, dtype=torch.int8))
    with pytest.raises(UserError, match=r"w is torch\.int8 and torch\.int8: average before quantizing"):
        average(codes, codes, 0.5, tmp_path / "z")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c", "d"]


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    one, other = (checkpoint(tmp_path / name, w=torch.zeros(2)) for name in "ab")
    for content in (b"", (one / WEIGHTS).read_bytes()[:-1]):
        (other / WEIGHTS).write_bytes(content)
        with pytest.raises(UserError, match=r"cannot average .*a and .*b: .*deserializing"):
            average(one, other, 0.5, tmp_path / "z")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_nothing_is_left_of_a_copy_that_fails(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object, path: Path, **__: object) -> None:
        path.touch()
        raise error

    one = checkpoint(tmp_path / "a", w=torch.zeros(2))
    monkeypatch.setattr("experiments.nano.average.save_file", fail)
    with pytest.raises((UserError, KeyboardInterrupt), match=r"cannot average .* No space left on device|^$"):
        average(one, one, 0.5, tmp_path / "z")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
