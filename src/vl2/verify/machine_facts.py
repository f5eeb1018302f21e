"""Describe the machine and the software versions for the report, without anything that identifies the user."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import torch

from vl2 import __version__
from vl2.checkpoint.machine_memory import MachineMemory
from vl2.kernels import describe_kernels

CPUINFO = Path("/proc/cpuinfo")
TIMEOUT_S = 10


def describe_machine(device: torch.device | None = None) -> dict[str, str]:
    """Return the facts about the machine as (name, text)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    facts = {
        "CPU": f"{_cpu_model()}, {cores} cores for this program, {torch.get_num_threads()} threads",
        "memory": f"{MachineMemory.now().total / 1e9:.1f} GB",
        "system": _system(),
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "kernels": describe_kernels(),
        "vl2": _version(),
    }
    if device is not None and device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        facts["GPU"] = f"{card.name}, {card.total_memory / 1e9:.1f} GB"
    return facts


def _cpu_model() -> str:
    try:
        lines = CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    if sys.platform == "darwin":
        return _output("sysctl", "-n", "machdep.cpu.brand_string") or platform.machine()
    return platform.processor() or platform.machine()


def _system() -> str:
    """Return the operating system without host name and kernel version, which may contain private names."""
    name = platform.system()
    if name == "Linux":
        with contextlib.suppress(OSError):
            name = platform.freedesktop_os_release().get("PRETTY_NAME", name)
    elif name == "Darwin":
        name = f"macOS {platform.mac_ver()[0]}"
    else:
        name = f"{name} {platform.release()}"
    return f"{name}, {platform.machine()}"


def _version() -> str:
    commit = _installed_commit() or _checkout_commit()
    return f"{__version__}, commit {commit}" if commit else __version__


def _installed_commit() -> str:
    """Return the installed commit as recorded by pip (PEP 610), or ""."""
    try:
        text = importlib.metadata.distribution("vl2").read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        return ""
    return str(json.loads(text or "{}").get("vcs_info", {}).get("commit_id", ""))[:12]


def _checkout_commit() -> str:
    """Return the commit of the checkout that contains this file, with a note if its source was changed."""
    root = Path(__file__).parents[3]
    if not (root / ".git").exists() or not (root / "src" / "vl2").is_dir():
        return ""
    commit = _output("git", "-C", str(root), "rev-parse", "--short=12", "HEAD")
    changed = _output("git", "-C", str(root), "status", "--porcelain", "--untracked-files=no", "--", "src")
    return f"{commit} with changes" if commit and changed else commit


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
