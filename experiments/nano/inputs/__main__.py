"""Get everything that the built-in model is made from, and lay it out in one folder.

    python -m experiments.nano.inputs --given FOLDER --to inputs

FOLDER holds what no registry has: text/enwiki.parquet, text/zhwiki.parquet, text/freedict-en-zh.parquet, and the
training rows of SROIE and NLVR and two sets of photographs; pins.txt lists them with their hashes. All else comes from
PyPI, npm and Debian by name, version and hash. Nothing is made before all of it is there and is what was pinned.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

from experiments.nano.inputs.layout import lay_out
from experiments.nano.inputs.manifest import check_manifest, write_manifest
from experiments.nano.inputs.pins import GIVEN, PinnedArchives, check, read_pins
from vl2.errors import UserError


def make(given: Path, to: Path, archives: Path) -> None:
    """Make the folder `to`; it appears when it is complete. One that is there is checked."""
    if to.exists():
        check_manifest(to)
        return
    for pin in read_pins():
        if pin.registry == GIVEN:
            check(pin, given / pin.name)
    pinned = PinnedArchives(archives)
    for pin, path in pinned.fetch_all():
        print(f"{pin.registry} {pin.name} {pin.version}: {path.stat().st_size / 1e6:.1f} MB", file=sys.stderr)
    to.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{to.name}-", dir=to.parent))
    try:
        unfinished.chmod(0o755)
        lay_out(given, pinned, unfinished)
        write_manifest(unfinished)
        os.replace(unfinished, to)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--given", type=Path, required=True, help="folder of the files that no registry has")
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--archives", type=Path, help="where downloads are kept; TO-archives by default")
    args = parser.parse_args()
    try:
        make(args.given, args.to, args.archives or args.to.with_name(f"{args.to.name}-archives"))
    except UserError as error:
        print(f"inputs: {error}", file=sys.stderr)
        return 1
    print(f"inputs: {args.to} is complete", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
