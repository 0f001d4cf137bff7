"""How every command ends: one line for what can be expected, a traceback for all else, and its exit status."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.command import is_expected, line_of, tell_errors
from prefjax.state_files import naming, read_object, write_whole

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    "error,line",
    [
        (ValueError("two\n  lines"), "two lines"),
        (ValueError("nothing\nis left\n\na table"), "nothing is left"),
        (ValueError(), "ValueError"),
        (FileNotFoundError("no checkpoints in x"), "no checkpoints in x"),
        (
            OSError(28, "No space left on device", "x"),
            "x: No space left on device: make room, then give the same command again",
        ),
        (
            PermissionError(13, "Permission denied", "x"),
            "x: Permission denied: give this user the right to it, or name another place, then give the same command "
            "again",
        ),
        (
            OSError(30, "Read-only file system", Path("x")),
            "x: Read-only file system: give this user the right to it, or name another place, then give the same "
            "command again",
        ),
        (NotADirectoryError(20, "Not a directory", b"x"), "x: Not a directory: something else lies in its place: "),
        (OSError(5, "Input/output error"), "Input/output error"),
        (ValueError("a\x1b[2J\x01\u202e.jsonl: no"), r"a\x1b[2J\x01\u202e.jsonl: no"),
        (FileNotFoundError(2, "No such file", "é\x1b[31m"), r"é\x1b[31m: No such file"),
    ],
    ids=repr,
)
def test_an_error_is_one_line_with_place_and_fix(error, line):
    assert line_of(error).startswith(line)


def caught(function):
    with pytest.raises(Exception) as found:
        function()
    return found.value


def test_what_this_code_raised_is_expected_and_what_broke_in_it_is_not(tmp_path):
    (tmp_path / "damaged").write_text("{")
    assert is_expected(caught(lambda: read_object(tmp_path / "damaged")))
    assert is_expected(caught(lambda: (tmp_path / "absent").read_text()))
    assert not is_expected(caught(lambda: json.loads("{")))
    assert not is_expected(caught(lambda: {}["x"]))
    assert not is_expected(ValueError("raised nowhere"))


class Unraisable:
    def __init__(self, words):
        self.words = words

    def __del__(self):
        raise RuntimeError(self.words)


@pytest.mark.parametrize("debug", [False, True])
def test_what_threads_of_orbax_leave_behind_is_told_for_debugging(debug, monkeypatch, capsys):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    tell_errors(debug=debug)
    for words in ("Event loop is closed", "other"):
        Unraisable(words)
    said = capsys.readouterr().err
    assert "other" in said and ("Event loop is closed" in said) == debug


def test_a_full_disk_names_the_file_that_was_written(tmp_path):
    def fill():
        raise OSError(28, "No space left on device")

    def absent():
        (tmp_path / "absent").read_text()

    for function, name in ((fill, "x"), (absent, str(tmp_path / "absent"))):
        with pytest.raises(OSError) as found, naming("x"):
            function()
        assert found.value.filename == name
    with pytest.raises(FileNotFoundError) as found:
        write_whole(tmp_path / "gone" / "state.json", "{}")
    assert found.value.filename == str(tmp_path / "gone" / "state.json")
    with pytest.raises(OSError, match="told already"), naming("x"):
        raise OSError("told already")


ENDS = """
import json, os, sys
from absl import app, flags
from experiments.command import start_command
from prefjax.state_files import read_object
os._exit = sys.exit
flags.DEFINE_string("file", None, "")
def usage():
    raise app.UsageError("give --other")
mains = {"ours": lambda: read_object("pyproject.toml"), "system": lambda: open("absent/file"), "usage": usage,
         "bug": lambda: {}["x"], "library": lambda: json.loads("{"), "fine": lambda: None}
for words in json.loads(sys.argv[1]):
    name, sys.argv = words[0], ["command", *words[1:]]
    try:
        start_command(lambda _: mains[name](), required=["file"])
        status = 0
    except SystemExit as ended:
        status = ended.code or 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    print(f"ends with {status}", file=sys.stderr, flush=True)
    delattr(flags.FLAGS, "debug")
    flags.FLAGS.unparse_flags()
"""
CASES = (
    (["fine", "--file=x"], 0, False, r"^$"),
    (["ours", "--file=x"], 1, False, r"^error: pyproject.toml is damaged: .*$"),
    (["ours", "--file=x", "--debug"], 1, True, r"^error: pyproject.toml is damaged: .*$"),
    (["system", "--file=x"], 1, False, r"^error: absent/file: No such file or directory: correct the path, .*$"),
    (["usage", "--file=x"], 2, False, r"^error: give --other$"),
    (["bug", "--file=x"], 1, True, r"^KeyError: 'x'$"),
    (["library", "--file=x"], 1, True, r"^json.decoder.JSONDecodeError: .*$"),
    (["fine"], 2, False, r"^error: .*--file.*$"),
    (["fine", "--file=x", "--output_dir=y"], 2, False, r"^error: Unknown command line flag 'output_dir' .*$"),
    (["fine", "--file=x", "--flie=y"], 2, False, r"^error: Unknown command line flag 'flie'\. Did you mean: .*$"),
    (["fine", "--file=x", "file=y"], 2, False, r"^error: 'file=y' is no flag, and hides those behind it: .*$"),
)


def test_exit_status_and_last_line_of_a_command():
    words = json.dumps([case[0] for case in CASES])
    done = subprocess.run([sys.executable, "-c", ENDS, words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *said, rest = re.split(r"^ends with (\d)\n", done.stderr, flags=re.MULTILINE)
    assert rest == "" and len(said) == 2 * len(CASES)
    for (case, status, trace, line), text, ended in zip(CASES, said[::2], said[1::2], strict=True):
        assert int(ended) == status and ("Traceback" in text) == trace, (case, text)
        assert re.match(line, text.strip().splitlines()[-1] if text else ""), (case, text)
        assert trace or text.count("\n") <= 1, (case, text)
