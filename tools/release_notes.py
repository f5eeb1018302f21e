"""Check that a tag is the version that every file says, and print its section of the changelog.

    python tools/release_notes.py v0.1.0 > notes.md

Run by the release workflow before anything is built.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
VERSIONS = {
    "pyproject.toml": r'^version = "(.+)"$',
    "src/vl2/__init__.py": r'^__version__ = "(.+)"$',
    "CITATION.cff": r"^version: (.+)$",
}


def read_versions(root: Path) -> dict[str, str]:
    """Return the version that each file says."""
    versions = {}
    for name, pattern in VERSIONS.items():
        found = re.findall(pattern, (root / name).read_text(encoding="utf-8"), re.M)
        assert len(found) == 1, f"{name} says {len(found)} versions"
        versions[name] = found[0]
    return versions


def read_notes(changelog: str, version: str) -> str:
    """Return the text under the heading of a version, up to the next version; "" where there is none."""
    for section in re.split(r"^## ", changelog, flags=re.M)[1:]:
        heading, _, text = section.partition("\n")
        if heading.startswith(f"[{version}]"):
            return text.strip()
    return ""


def main(tag: str, root: Path = ROOT) -> str:
    """Return the notes of a tag; exits with what is wrong."""
    for name, version in read_versions(root).items():
        if tag != f"v{version}":
            sys.exit(f"the tag is {tag}, and {name} says {version}")
    notes = read_notes((root / "CHANGELOG.md").read_text(encoding="utf-8"), tag[1:])
    if not notes:
        sys.exit(f"CHANGELOG.md has nothing under [{tag[1:]}]")
    return notes


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("one tag is wanted, such as v0.1.0")
    print(main(sys.argv[1]))
