"""Say in README.md and pyproject.toml where this repository is hosted, before a package is built from it.

    python tools/set_home.py https://github.com/OWNER/NAME COMMIT

A package index shows the README apart from the repository, where a relative link leads nowhere and a picture stays
empty. Links become those of the commit, and the project gets its addresses. Both files are changed in place: the
workflow that builds packages does this in its own checkout. They hold no address, so that a fork needs no change.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(?P<picture>!?)\[(?P<text>[^\[\]]*)\]\((?!\w+:|#)(?P<path>[^)\s]+)\)")
PROJECT_URLS = re.compile(r"(?:^# [^\n]*\n)?^\[project\.urls\]\n", re.MULTILINE)


def absolute_links(text: str, home: str, commit: str) -> str:
    """Return Markdown whose relative links lead to files of a commit, those of pictures to the file itself."""
    files = re.sub(r"^https://github\.com/", "https://raw.githubusercontent.com/", home)
    bare = f"{files}/{commit}" if files != home else f"{home}/raw/{commit}"

    def led(match: re.Match[str]) -> str:
        base = bare if match["picture"] else f"{home}/blob/{commit}"
        return f"{match['picture']}[{match['text']}]({base}/{match['path']})"

    return LINK.sub(led, text)


def with_urls(pyproject: str, home: str) -> str:
    """Return pyproject.toml with the addresses of the project before those that it has."""
    own = {"Homepage": home, "Source": home, "Issues": f"{home}/issues", "Changelog": f"{home}/blob/HEAD/CHANGELOG.md"}
    lines = "".join(f'"{name}" = "{url}"\n' for name, url in own.items())
    assert PROJECT_URLS.search(pyproject), "pyproject.toml has no [project.urls]"
    return PROJECT_URLS.sub(f"[project.urls]\n{lines}", pyproject, count=1)


def main(home: str, commit: str, root: Path = ROOT) -> None:
    """Change both files of a checkout; exits if the address is none."""
    home = home.rstrip("/")
    if not re.fullmatch(r"https://[\w.-]+/[\w./-]+", home):
        sys.exit(f"an address such as https://github.com/OWNER/NAME is wanted, not {home}")
    readme, pyproject = root / "README.md", root / "pyproject.toml"
    readme.write_text(absolute_links(readme.read_text(encoding="utf-8"), home, commit), encoding="utf-8")
    pyproject.write_text(with_urls(pyproject.read_text(encoding="utf-8"), home), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("an address and a commit are wanted")
    main(*sys.argv[1:])
