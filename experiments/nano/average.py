"""Average the weights of two checkpoints of one model: fine-tuned weights and those that they were fine-tuned from.

    python -m experiments.nano.average BEFORE AFTER --share 0.75 --to FOLDER

The result takes `--share` of each weight from AFTER and the rest from BEFORE. On pictures of new kinds it is nearly as
good as AFTER or better, and on those of the earlier training nearly as good as BEFORE.

Source: arXiv 2109.01903 (weight-space ensembles for fine-tuning).
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from vl2.checkpoint.folder import new_folder
from vl2.errors import UserError

WEIGHTS = "model.safetensors"


def average(before: Path, after: Path, share: float, to: Path) -> None:
    """Write the average of two checkpoints, whole or not at all.

    UserError unless both hold the same tensors, none of them quantized, in one file each.
    """
    if not 0 <= share <= 1:
        raise UserError(f"--share must be from 0 to 1, got {share:g}")
    for folder in (before, after):
        if not (folder / WEIGHTS).is_file():
            raise UserError(f"{folder} has no {WEIGHTS}")
    if to.exists():
        raise UserError(f"{to} is there already: give another folder")
    try:
        with new_folder(to) as partial:
            shutil.copytree(after, partial, dirs_exist_ok=True)
            _write_average(before, after, share, partial / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot average {before} and {after}: {error}") from None


def _write_average(before: Path, after: Path, share: float, path: Path) -> None:
    with safe_open(before / WEIGHTS, "pt") as first, safe_open(after / WEIGHTS, "pt") as second:
        names = sorted(second.keys())
        if names != sorted(first.keys()):
            raise UserError(f"{before} and {after} do not hold the same tensors")
        averaged = {}
        for name in names:
            old, new = first.get_tensor(name), second.get_tensor(name)
            if old.shape != new.shape:
                raise UserError(f"{name} is {list(old.shape)} in {before} and {list(new.shape)} in {after}")
            if not (old.is_floating_point() and new.is_floating_point()):
                raise UserError(f"{name} is {old.dtype} and {new.dtype}: average before quantizing")
            averaged[name] = old.float().lerp(new.float(), share).to(new.dtype)
        save_file(averaged, path, metadata=second.metadata())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--share", type=float, required=True)
    parser.add_argument("--to", type=Path, required=True)
    args = parser.parse_args()
    try:
        average(args.before, args.after, args.share, args.to)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
