"""From prepared trees back to the records they were made of, with columns that the trees do not hold."""

from collections.abc import Iterator, Sequence

import numpy as np

from prefjax.data.encoding import encode
from prefjax.data.formats import Columns
from prefjax.data.prepare import DataConfig, Need
from prefjax.data.records import Record
from prefjax.data.report import Rejection
from prefjax.data.sources import open_sources, parse_sources
from prefjax.data.store import PreparedTrees
from prefjax.data.tokenizers import Tokenizer
from prefjax.data.transforms import adapt
from prefjax.data.trees import TokenTree


def records_behind(
    config: DataConfig, trees: PreparedTrees, tokenizer: Tokenizer, *, columns: Sequence[str] = ()
) -> list[Record]:
    """The record of every tree of a split that no data method has changed (held-out splits), read again.

    Trees hold no text; records keep their order, so each tree belongs to the next record that encodes to its tokens.

    Args:
      config, tokenizer: as the trees were prepared with.
      columns: further columns of the file, to keep in `Record.columns` where a row has them.

    Raises:
      ValueError: the files do not make these trees any more.
    """
    found: list[Record] = []
    for record, tree in _encoded(config, trees, tokenizer, columns):
        if len(found) < len(trees) and _same(tree, trees[len(found)]):
            found.append(record)
    if len(found) < len(trees):
        raise ValueError(
            f"tree {len(found)} of {trees.directory} is made of no record of {trees.manifest['source']} as it is read "
            "now: prepare it again"
        )
    return found


def _encoded(config, trees, tokenizer, columns) -> Iterator[tuple[Record, TokenTree]]:
    need = Need(**{**trees.manifest["need"], "numbers": tuple(trees.manifest["need"]["numbers"])})
    options = dict(rankings=config.rankings, pair_targets=config.pair_targets, least=need.least, numbers=need.numbers)
    if need.best_only:
        options = dict(best_only=True)
    sources = parse_sources(trees.manifest["source"])
    for source in open_sources(sources, data_dir=config.tfds_dir, manual_dir=config.manual_dir):
        records, _ = source.read(config.format, more=Columns(record=tuple(columns)))
        records, _ = adapt(records, group_size=need.group_size, reads=need.reads, **options)
        for record in records:
            tree = encode(record, tokenizer, config.encoding)
            if not isinstance(tree, Rejection):
                yield record, tree


def _same(a: TokenTree, b: TokenTree) -> bool:
    nodes = zip((a.prompt, *a.responses), (b.prompt, *b.responses), strict=False)
    return len(a.responses) == len(b.responses) and all(np.array_equal(x, y) for x, y in nodes)
