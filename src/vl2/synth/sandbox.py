"""Run an untrusted Python script in its own process group, with resource limits, an empty folder and no network.

The kernel limits CPU time, address space, file size and open files, and this process kills the process group when the
wall-clock limit is over. Inside, an audit hook, which Python code cannot remove, forbids connections, child processes,
native calls and writing outside the folder.

This stops accidents and simple attacks. Against a determined attacker, put the whole run in a container or a virtual
machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vl2.errors import UserError

MIB = 1 << 20
MAX_OUTPUT_CHARS = 2000

# This code runs before the script, in its process. It sets hard limits, so that the script cannot raise them again.
_PROLOGUE = """
import json, os, resource, sys
limits, warm = json.loads(sys.argv[1]), json.loads(sys.argv[2])
folder = os.path.realpath(os.getcwd())
for name, value in limits.items():
    kind = getattr(resource, "RLIMIT_" + name)
    hard = resource.getrlimit(kind)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    try:
        resource.setrlimit(kind, (value, value))
    except (ValueError, OSError):
        if sys.platform.startswith("linux"):
            raise
if sys.platform.startswith("linux"):
    import ctypes
    libc = ctypes.CDLL(None)
    libc.unshare(0x40000000) and libc.unshare(0x50000000)  # a network namespace of its own, where that is allowed
for module in warm:  # what opens libraries has to be imported before that is forbidden
    __import__(module)

def refuse(event, arguments):
    head = event.split(".")[0]
    if head in ("subprocess", "ctypes", "pty") or event in FORBIDDEN:
        raise PermissionError("the sandbox does not allow " + event)
    if head == "socket" and event != "socket.__new__":
        raise PermissionError("the sandbox does not allow " + event)
    if event == "open" and isinstance(arguments[0], (str, bytes)) and writes(arguments[1], arguments[2]):
        inside(arguments[0])
    elif event in CHANGES:
        for path in arguments[:2]:
            if isinstance(path, (str, bytes)):
                inside(path)

FORBIDDEN = {"os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.kill", "os.killpg",
             "os.chown", "os.setxattr", "resource.setrlimit", "resource.prlimit"}
CHANGES = {"os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.chmod", "os.truncate",
           "shutil.rmtree", "shutil.move", "os.utime", "os.chdir"}

def writes(mode, flags):
    if isinstance(mode, str):
        return any(letter in mode for letter in "wax+")
    return bool((flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND))

def inside(path):
    place = os.path.realpath(os.fsdecode(path))
    if place != os.devnull and os.path.commonpath((place, folder)) != folder:
        raise PermissionError("the sandbox does not allow to change " + place)

sys.addaudithook(refuse)
sys.argv = ["script.py"]
with open("script.py", encoding="utf-8") as file:
    code = compile(file.read(), "script.py", "exec")
exec(code, {"__name__": "__main__", "__file__": "script.py"})
"""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Resource limits of a script. Raise UserError unless all are positive."""

    cpu_s: int = 10
    wall_s: float = 20.0
    memory_bytes: int = 2048 * MIB  # of address space
    file_bytes: int = 32 * MIB  # of each file written
    open_files: int = 128

    def __post_init__(self) -> None:
        if min(self.cpu_s, self.wall_s, self.memory_bytes, self.file_bytes, self.open_files) <= 0:
            raise UserError(f"every limit must be above 0, got {self}")


@dataclass(frozen=True, kw_only=True)
class Ran:
    """The result of a script."""

    outcome: str  # "ok", "error", "killed" (by a limit of the kernel) or "timeout"
    output: str  # the last MAX_OUTPUT_CHARS characters that it printed
    files: dict[str, bytes] = field(default_factory=dict)  # contents of the wanted files that it wrote, by name


def run_script(
    code: str,
    *,
    limits: Limits | None = None,
    wanted: Sequence[str] = (),
    warm: Sequence[str] = (),
    given: Mapping[str, bytes] | None = None,
) -> Ran:
    """Run a script in an empty folder, and return its output and the `wanted` files that it wrote.

    `warm` names modules to import before the restrictions begin, and `given` has files to put into the folder. Raise
    UserError on systems other than Linux and macOS. macOS does not enforce the memory limit.
    """
    if os.name != "posix":
        raise UserError("scripts run only where processes can be limited: Linux or macOS")
    limits = Limits() if limits is None else limits
    with tempfile.TemporaryDirectory(prefix="vl2-sandbox-") as folder:
        home = Path(folder)
        for name, data in (given or {}).items():
            (home / name).write_bytes(data)
        (home / "script.py").write_text(code, encoding="utf-8")
        outcome, output = _run(home, limits, warm)
        return Ran(outcome=outcome, output=output, files=_collect(home, wanted, limits))


def _collect(home: Path, wanted: Sequence[str], limits: Limits) -> dict[str, bytes]:
    # Only regular files are read: a link could lead to a file outside, and a device or a pipe might never end.
    regular = [name for name in wanted if (home / name).is_file() and not (home / name).is_symlink()]
    return {name: (home / name).read_bytes() for name in regular if (home / name).stat().st_size <= limits.file_bytes}


def _run(home: Path, limits: Limits, warm: Sequence[str]) -> tuple[str, str]:
    kernel = {"CPU": limits.cpu_s, "AS": limits.memory_bytes, "FSIZE": limits.file_bytes, "NOFILE": limits.open_files,
              "CORE": 0}  # fmt: skip
    command = [sys.executable, "-I", "-c", _PROLOGUE, json.dumps(kernel), json.dumps(list(warm))]
    with (home / "output.txt").open("wb") as output:
        process = subprocess.Popen(
            command, cwd=home, env=_environment(home), stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            start_new_session=True,
        )  # fmt: skip
        try:
            code = process.wait(limits.wall_s)
            outcome = "ok" if code == 0 else "killed" if code < 0 else "error"
        except subprocess.TimeoutExpired:
            outcome = "timeout"
        finally:
            _kill_group(process)
    text = (home / "output.txt").read_bytes()[-4 * MAX_OUTPUT_CHARS :].decode(errors="replace")
    return outcome, text[-MAX_OUTPUT_CHARS:]


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill all processes of the group, including children of a script that has already ended."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _environment(home: Path) -> dict[str, str]:
    """Return the environment of the script: no variables of ours, single-threaded libraries, proxies that fail."""
    nowhere = dict.fromkeys(
        ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), "http://127.0.0.1:9"
    )
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    places = dict.fromkeys(("HOME", "TMPDIR", "MPLCONFIGDIR", "XDG_CACHE_HOME"), str(home))
    return {**nowhere, **threads, **places, "MPLBACKEND": "Agg", "PATH": os.defpath, "LANG": "C.UTF-8"}
