"""One or several runs, finished or not, on a page: curves on the same axes, final values, what differs, what is odd.

python -m experiments.report --runs=runs/a,runs/b
python -m experiments.report --runs=runs/zoo --output=zoo-report     every run in the folder
python -m experiments.report --runs=runs/a/sft                       the stage before

Writes overview.md, overview.png and overview.json. Runs that differ in nothing but their seed are one row and one band.
A folder that holds only metrics.jsonl is enough; config.json, run.json and result.json add what they know.
"""

import os
from pathlib import Path

from absl import flags

from experiments.command import start_command
from prefjax.analysis import find_runs, read_run, write_overview
from prefjax.interrupts import StopRequest

_RUNS = flags.DEFINE_list("runs", None, "Folders of runs, or folders that hold such folders, with commas between them.")
_OUTPUT = flags.DEFINE_string(
    "output", "", "Folder for the page. Empty: the run's own, or the one that holds all runs."
)


@StopRequest()
def main(_) -> None:
    folders = find_runs(_RUNS.value)
    output = Path(_OUTPUT.value) if _OUTPUT.value else common_folder(folders)
    names = run_names(folders)
    path = write_overview(output, [read_run(folder, name) for folder, name in zip(folders, names, strict=True)])
    print(f"written to {path}", flush=True)


def common_folder(folders: list[Path]) -> Path:
    """The deepest folder that holds all runs; a single run's own.

    Raises:
      ValueError: that is the current folder or one around it, where nobody looks for a report.
    """
    common = Path(os.path.commonpath([folder.resolve() for folder in folders]))
    if len(folders) > 1 and Path.cwd().resolve().is_relative_to(common):
        raise ValueError(f"--output: the folder that holds all runs is {common}: say where the page goes")
    return common


def run_names(folders: list[Path]) -> list[str]:
    """Short names that tell runs apart: their paths below what they have in common."""
    if len(folders) == 1:
        return [folders[0].resolve().name]
    paths = [folder.resolve() for folder in folders]
    common = Path(os.path.commonpath(paths))
    return [str(path.relative_to(common.parent if common in paths else common)) for path in paths]


if __name__ == "__main__":
    start_command(main, required=["runs"])
