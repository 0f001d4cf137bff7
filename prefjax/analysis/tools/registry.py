"""The analysis tools by name, with their options and the shapes of files they read."""

import dataclasses
import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any

from prefjax.analysis.tools import (
    best_of_n,
    conflict,
    distinguishability,
    factors,
    ranking,
    search,
    sparse,
    subsets,
)
from prefjax.analysis.tools.findings import Finding

REQUIRED = inspect.Parameter.empty


@dataclasses.dataclass(frozen=True)
class Tool:
    """One entry of the registry.

    apply             (table, **options) -> finding
    records           reads preference records: the table has a column "responses", two texts for each row, and the
                      columns that `response_columns` name; otherwise the table has the files' own columns
    response_columns  for tools that read records: the options that name response columns
    """

    apply: Callable[..., Finding]
    records: bool = False
    response_columns: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.apply.__name__

    @property
    def options(self) -> dict[str, Any]:
        """Name -> default; REQUIRED where it must be given."""
        parameters = inspect.signature(self.apply).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}

    def options_class(self) -> type:
        """A dataclass with the options as fields, which says their types and defaults."""
        hints = typing.get_type_hints(self.apply)
        return dataclasses.make_dataclass(
            f"{self.name}_options",
            [
                (name, hints[name]) if default is REQUIRED else (name, hints[name], default)
                for name, default in self.options.items()
            ],
            frozen=True,
        )


_TOOLS = (
    Tool(ranking.ranking_accuracy),
    Tool(subsets.subset_accuracy),
    Tool(best_of_n.best_of_n),
    Tool(best_of_n.mini_best_of_n),
    Tool(conflict.aspect_conflict),
    Tool(conflict.performance_falls),
    Tool(distinguishability.preference_distinguishability),
    Tool(factors.preference_factors, records=True, response_columns=("columns",)),
    Tool(sparse.sparse_features),
    Tool(search.pairwise_ranking),
)
TOOLS: Mapping[str, Tool] = {tool.name: tool for tool in _TOOLS}
