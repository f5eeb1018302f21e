"""The entry point of `vl2`: parse the arguments, run one command, and print a UserError as one line.

Only the answer goes to stdout. Exit codes: 0 for success, 1 for bad input or failed items, 2 for wrong usage, 130 for
Ctrl-C. This module imports nothing heavy, so that Ctrl-C is handled while the commands are still being imported.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NoReturn

from vl2.errors import RankLost, UserError
from vl2.process_tuning import brief_spins

if TYPE_CHECKING:
    from vl2.cli.parse import Command

    Parse = Callable[[Sequence[str]], Command]


def main(arguments: Sequence[str] | None = None, parse: Parse | None = None) -> None:
    """Run the command line and exit. By default `parse` is the parser of `vl2`'s commands."""
    try:
        if arguments is None:
            _leave_ascii()
        _prepare_streams()
        with brief_spins():
            code = run(sys.argv[1:] if arguments is None else arguments, parse)
    except RankLost as error:
        end_in_one_line(error)
    except KeyboardInterrupt:
        code = 130
    if code == 130:
        with contextlib.suppress(ValueError):  # not the main thread
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second Ctrl-C during shutdown is quiet too
    if code == 0 and os.environ.get("WORLD_SIZE", "1") != "1":
        # PyTorch's caches of sharded weights keep the process group and its threads alive. These threads sometimes
        # abort the process during the interpreter's shutdown, and then a successful rank would count as failed.
        _end_at_once(code)
    sys.exit(code)


def _leave_ascii() -> None:
    """Restart Python in UTF-8 mode if the locale is ASCII and UTF-8 mode is disabled (LC_ALL=C PYTHONUTF8=0).

    Otherwise arguments, file names and answers could not contain other characters.
    """
    if sys.getfilesystemencoding() == "ascii" and not sys.flags.utf8_mode and sys.executable:
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def _prepare_streams() -> None:
    """Make any text printable by escaping characters that a stream's encoding lacks."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the parent process; print(file=None) would write to the other stream
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            is_windows_file = sys.platform == "win32" and not stream.isatty()
            if is_windows_file or stream.encoding.lower() in ("ascii", "us-ascii", "ansi_x3.4-1968"):
                # On Windows redirected output would use the system's code page. ASCII means that no locale is set.
                stream.reconfigure(encoding="utf-8", errors="backslashreplace")
            elif stream.errors in ("strict", "surrogateescape"):
                stream.reconfigure(errors="backslashreplace")


def end_in_one_line(error: RankLost) -> NoReturn:
    """Print an error and end the process at once, because a thread may wait for the lost rank forever."""
    with contextlib.suppress(OSError):  # stderr may be closed
        _print_error(error)
    _end_at_once(1)


def _end_at_once(code: int) -> NoReturn:
    """End the process without the interpreter's shutdown, which would wait for every thread."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(code)


def run(arguments: Sequence[str], parse: Parse | None = None) -> int:
    """Run one command and return its exit code. RankLost is passed on to `main`, which must end the process."""
    try:
        if list(arguments) in (["--version"], ["-V"]):
            from vl2 import __version__

            print(f"vl2 {__version__}")
        else:
            if parse is None:
                from vl2.cli.parse import parse as parse_vl2

                parse = parse_vl2
            run_command(arguments, parse)
        sys.stdout.flush()
    except RankLost:
        raise
    except UserError as error:
        _print_error(error)
        return 1
    except SystemExit as stop:
        with contextlib.suppress(BrokenPipeError):  # `vl2 --help | head`
            sys.stdout.flush()
            return _code_of(stop)
        _forget_stdout()
        return _code_of(stop)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our stdout has closed the pipe, as in `vl2 ask ... | head`.
        _forget_stdout()
        return 0
    except OSError as error:
        if not _is_full(error):
            raise
        _forget_stdout()
        _print_error(UserError(f"cannot write the answer: {error.strerror}"))
        return 1
    return 0


def run_command(arguments: Sequence[str], parse: Parse) -> None:
    """Parse and run a command. Several processes that torchrun has started run a command that answers together."""
    # Some clusters set WORLD_SIZE for every process. torchrun sets the other variable as well.
    if os.environ.get("WORLD_SIZE", "1") == "1" or "TORCHELASTIC_RUN_ID" not in os.environ:
        parse(arguments).run()
        return
    from vl2.cli.ranks import is_for_ranks, only_first_speaks, run_over_ranks

    with only_first_speaks():
        command = parse(arguments)
    if is_for_ranks(command):
        run_over_ranks(command)
    else:
        command.run()


def _code_of(stop: SystemExit) -> int:
    return 0 if stop.code is None else stop.code if isinstance(stop.code, int) else 2


def _is_full(error: OSError) -> bool:
    """Tell whether writing to stdout failed because the disk is full. Such an error has no file name."""
    return error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None)) and error.filename is None


def _forget_stdout() -> None:
    """Redirect stdout to the null device, so that the interpreter's last flush does not fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print_error(error: UserError) -> None:
    print(f"vl2: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
