"""How every command starts and ends. Its exit status tells how it ended:

0    done
1    an error that can be expected: one line on stderr, `error: ` and what, where and the fix, which tables may
     precede; --debug puts its traceback before it. What nobody expected comes with a traceback anyway
2    a wrong command line, in one such line too
130  interrupted (prefjax/interrupts.py)
"""

import errno
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

from absl import app, flags, logging

from experiments.elsewhere import hint

flags.disclaim_key_flags()  # --debug belongs to the command that starts, whose --help shows it

_USAGE = 2
_CODE = Path(__file__).resolve().parents[1]
_ROOMS = tuple(str(_CODE / room) + os.sep for room in ("prefjax", "experiments", "configs"))
_ROOM, _RIGHT = "make room", "give this user the right to it, or name another place"
_OTHER = "something else lies in its place: move that away"
_FIXES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), _ROOM),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), _RIGHT),
    **dict.fromkeys((errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY), _OTHER),
    errno.ENOENT: "correct the path, or have back what was there",
}


def start_command(main: Callable[[Sequence[str]], None], *, required: Sequence[str] = ()) -> None:
    """Parses the flags and runs a command.

    Args:
      main: takes absl's list of words that are no flags, which holds the program's name alone.
      required: flags that must be given.
    """
    flags.mark_flags_as_required(required)
    flags.DEFINE_bool("debug", False, "Tracebacks of errors that can be expected, too.")

    def run(words: Sequence[str]) -> None:
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # JAX tells of devices that are not there, Orbax of every save
        tell_errors(debug=flags.FLAGS.debug)
        try:
            if words[1:]:
                raise app.UsageError(f"{words[1]!r} is no flag, and hides those behind it: write --name=value")
            main(words)
        except app.UsageError as error:
            sys.exit(refuse(error))
        except Exception as error:
            if not is_expected(error):
                raise
            sys.excepthook(type(error), error, error.__traceback__)
            sys.stdout.flush()
            os._exit(1)  # an orderly exit lets what threads still wanted to write come after that line

    app.run(run, flags_parser=_parse)


def command_line(name: str) -> str:
    """How experiments/NAME.py was started, to be shown with what it made."""
    return shlex.join(["python", "-m", f"experiments.{name}", *sys.argv[1:]])


def refuse(error: Exception) -> int:
    """Says what is wrong with a command line; returns the exit status for that."""
    print(f"error: {line_of(error)}", file=sys.stderr, flush=True)
    return _USAGE


def tell_errors(*, debug: bool) -> None:
    """From here on an exception that ends the program, and `is_expected`, is told in one line.

    Args:
      debug: with its traceback before it.
    """

    def tell(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        expected = is_expected(error)
        if debug or not expected:
            sys.__excepthook__(kind, error, trace)
        if expected:
            if details := str(error).partition("\n\n")[2]:  # tables, as of what became of every record
                print(details, file=sys.stderr)
            print(f"error: {line_of(error)}", file=sys.stderr, flush=True)

    def tell_ignored(what: "sys.UnraisableHookArgs") -> None:
        # Orbax's threads still call into their event loop when a failed save has closed it; the save is told of.
        if debug or str(what.exc_value) != "Event loop is closed":
            sys.__unraisablehook__(what)

    sys.excepthook, sys.unraisablehook = tell, tell_ignored


def is_expected(error: BaseException) -> bool:
    """What the system says of files, and what this code raised on purpose; all else may be a fault of ours."""
    if isinstance(error, OSError | app.UsageError):
        return True
    frames = traceback.extract_tb(error.__traceback__)
    ours = bool(frames) and os.path.abspath(frames[-1].filename).startswith(_ROOMS)
    return ours and isinstance(error, ValueError | RuntimeError | ImportError)


def line_of(error: BaseException) -> str:
    """What an error says before a blank line, as one; of a file that cannot be used: which, why, what can be done. What
    a terminal would obey, in the name of a file or in a damaged one, is spelled out."""
    words = " ".join(_words_of(error).split()) or type(error).__name__
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in words)


def _words_of(error: BaseException) -> str:
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error).partition("\n\n")[0]
    where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes | os.PathLike) else ""
    fix = f": {_FIXES[error.errno]}, then give the same command again" if error.errno in _FIXES else ""
    return f"{where}{error.strerror}{fix}"


def _parse(words: Sequence[str]) -> list[str]:
    try:
        return flags.FLAGS(words)
    except flags.UnrecognizedFlagError as error:
        known = hint(error.flagname) if "config" in flags.FLAGS or "workdir" in flags.FLAGS else ""
        sys.exit(refuse(ValueError(f"{error}{known} (--help says what there is)")))
    except flags.Error as error:
        sys.exit(refuse(ValueError(f"{error} (--help says what there is)")))
