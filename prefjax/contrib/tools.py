"""The analysis tools by name, with the files they read.

To add one, write it in a module of this folder under `@tool(...)`, with the facts that are fields of `Tool`, and a
docstring in the form of the others; then run `python -m docs.write_analysis`.
"""

import dataclasses

from prefjax.registry import Entry, FunctionRegistry


@dataclasses.dataclass(frozen=True)
class Tool(Entry):
    """An analysis tool: apply is (table, **options) -> output.

    records           reads preference records: the table has a column "responses", two texts for each row, and the
                      columns that `response_columns` name; otherwise the table has the files' own columns
    response_columns  for tools that read records: the options that name response columns
    """

    records: bool = False
    response_columns: tuple[str, ...] = ()


TOOLS: FunctionRegistry[Tool] = FunctionRegistry(Tool, kind="tool", package="prefjax.contrib", page="docs/analysis.md")
tool = TOOLS.register
