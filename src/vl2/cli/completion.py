"""The command `vl2 completion`, which prints a script for shell completion of commands, options and files."""

from __future__ import annotations

import contextlib
import io
import re
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

# Tyro's function completes commands, options and choices. If it offers nothing, complete file names.
FILES_IN_BASH = """
_vl2_or_files() {
  COMPREPLY=()
  FUNCTION "$@"
  if [[ -z "${COMPREPLY[0]}" ]]; then
    local IFS=$'\\n'
    COMPREPLY=($(compgen -f -- "${COMP_WORDS[COMP_CWORD]}"))
  fi
}
complete -o filenames -F _vl2_or_files vl2
"""


@dataclass(frozen=True, kw_only=True)
class Completion:
    """Print the script that lets your shell complete commands, options and files when you press Tab.

    Examples:
      vl2 completion bash > ~/.local/share/bash-completion/completions/vl2
      vl2 completion zsh > ~/.zfunc/_vl2

    Make the folder first, and open a new shell afterwards. For zsh, ~/.zshrc needs the line
    `fpath+=~/.zfunc; autoload -Uz compinit; compinit`.
    """

    shell: Annotated[Literal["bash", "zsh"], tyro.conf.Positional, tyro.conf.arg(metavar="SHELL")]
    """bash or zsh"""

    def run(self) -> None:
        print(completion_script(self.shell))


def completion_script(shell: Literal["bash", "zsh"]) -> str:
    """Return tyro's completion script for a shell, extended by file names where tyro offers nothing."""
    from vl2.cli.parse import parse_any

    written = io.StringIO()
    with contextlib.redirect_stdout(written), contextlib.suppress(SystemExit):
        parse_any(["--tyro-write-completion", shell, "-"])
    script = written.getvalue().rstrip()
    registered = r"^complete -F (\w+) vl2$" if shell == "bash" else r'^(\w+) "\$@"$'
    (function,) = re.findall(registered, script, re.MULTILINE)
    if shell == "bash":
        return script + "\n" + FILES_IN_BASH.replace("FUNCTION", function).rstrip()
    return script.removesuffix(f'{function} "$@"') + f'{function} "$@" || _files'
