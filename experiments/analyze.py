"""Analyses score files, embeddings and preference records by tools of the literature: a table, JSON and a plot.

    python -m experiments.analyze --tool="ranking_accuracy(reference='reference_logp', beta=0.1)" \\
        --data=scores.jsonl --output=analysis

docs/analysis.md lists the tools with the columns they read. `data` is a file, folder or glob pattern (docs/shapes.md)
whose rows have these columns; a tool that reads preference records takes what `config.data.train` takes: files, named
datasets, several with " + " between them. `arrays` adds columns from .npz files (by the arrays' names) and .npy files
(by the file's), row by row beside `data` or by themselves: embeddings belong there. A *response column* holds a list
with one value for each response: of a pair chosen and rejected, of a ranking all of them. Written to OUTPUT: TOOL.md,
TOOL.json and, where there is something to see, TOOL.png.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from absl import app, flags

from experiments.command import command_line, start_command
from prefjax.contrib.output import write_output
from prefjax.contrib.table import Table
from prefjax.contrib.tools import TOOLS, Tool
from prefjax.data.columns import read_arrays, read_columns
from prefjax.data.formats import Columns, RecordFormat
from prefjax.data.records import Text
from prefjax.data.sources import open_all
from prefjax.interrupts import StopRequest

_TOOL = flags.DEFINE_string("tool", None, "name(option=value, ...), see docs/analysis.md.")
_DATA = flags.DEFINE_string("data", "", "Rows: a file or glob; for tools of records as config.data.train.")
_ARRAYS = flags.DEFINE_multi_string("arrays", [], "Further columns: an .npz or .npy file. May be given several times.")
_OUTPUT = flags.DEFINE_string("output", None, "The folder to write to.")
_TFDS_DIR = flags.DEFINE_string("tfds_dir", "", "Where named datasets are kept; empty: ~/tensorflow_datasets.")
_MANUAL_DIR = flags.DEFINE_string("manual_dir", "", "Files of named datasets, fetched by hand.")


def parse_tool(text: str) -> tuple[Tool, dict[str, Any]]:
    """ "best_of_n(reward='rm')" or "best_of_n": a tool and all its options.

    Raises:
      ValueError: as `FunctionRegistry.parse`, or not exactly one tool.
    """
    calls = TOOLS.parse(text)
    if len(calls) != 1:
        raise ValueError(f"tool={text!r}: one tool at a time, as name(option=value, ...)")
    return calls[0]


def read_table(tool: Tool, options: Mapping[str, Any], data: str, arrays: Sequence[str], **folders: str) -> Table:
    """What the tool reads, as columns. Raises ValueError where they have different numbers of rows, or one is twice.

    Args:
      folders: data_dir and manual_dir, as of `open_sources`.
    """
    columns: dict[str, Sequence[Any]] = {}
    if data:
        columns = _record_columns(tool, options, data, folders) if tool.records else read_columns(data)
    for path in arrays:
        for name, array in read_arrays(path).items():
            if name in columns:
                raise ValueError(f"{path}: there is a column {name!r} already")
            columns[name] = array
    return Table(columns)


def _record_columns(
    tool: Tool, options: Mapping[str, Any], data: str, folders: Mapping[str, str]
) -> dict[str, list[Any]]:
    wanted = tuple(name for option in tool.response_columns for name in options[option])
    columns: dict[str, list[Any]] = {"responses": [], **{name: [] for name in wanted}}
    for source in open_all(data, **folders):
        records, account = source.read(RecordFormat(), more=Columns(response=wanted))
        print(account)
        for record in records:
            if record.kind != "pair":
                raise ValueError(
                    f"{record.source} is no pair: make pairs of rankings first, by experiments.curate with "
                    '--methods="pairs"'
                )
            columns["responses"].append([_plain(response) for response in record.responses])
            for name in wanted:
                columns[name].append(record.response_columns.get(name))
    return columns


def _plain(text: Text) -> str:
    return text if isinstance(text, str) else "\n".join(message.content for message in text)


@StopRequest()
def main(_) -> None:
    tool, options = parse_tool(_TOOL.value)
    if not _DATA.value and not _ARRAYS.value:
        raise app.UsageError("give --data, --arrays, or both")
    folders = dict(data_dir=_TFDS_DIR.value, manual_dir=_MANUAL_DIR.value)
    table = read_table(tool, options, _DATA.value, _ARRAYS.value, **folders)
    command = command_line("analyze")
    output = tool.apply(table, **options)
    path = write_output(_OUTPUT.value, tool.name, output, command)
    print(f"{output.headline}\nwritten to {path}")


if __name__ == "__main__":
    start_command(main, required=["tool", "output"])
