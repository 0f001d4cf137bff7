"""Preference data, or the synthetic world, made into prepared token trees: read, split, adapt, mix, encode, store.

What was prepared once is found again by a key over everything it depends on: the sources' content, the options, the
tokenizer. The manifest beside the trees says what happened to every record of every source. Records pass as a
stream, so memory grows by what an index holds of a tree alone; who was killed finds the parts that were encoded.
"""

import collections
import dataclasses
import hashlib
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from prefjax.data.account import Account, Rejection, Stage
from prefjax.data.config import DataConfig
from prefjax.data.days import as_prepared, first_day
from prefjax.data.encoding import encode, ends_among
from prefjax.data.encoding_parts import PartEncoder, encode_parts
from prefjax.data.methods.sequences import provenance
from prefjax.data.records import Record
from prefjax.data.sources import Source, refuse_copies
from prefjax.data.tokenizers import Tokenizer
from prefjax.data.transforms import Normalization, measure_targets, normalized
from prefjax.data.treatment import Asked, TreatedRecords
from prefjax.requirements import Requirements
from prefjax.rows.lengths import summarize
from prefjax.rows.parts import finish, parts_of, read_index
from prefjax.rows.store import PreparedTrees, open_trees
from prefjax.rows.trees import TokenTree
from prefjax.rows.vectors import same_tokens

_ENCODING = 6  # of encoded records and the manifest: prepared trees of an earlier number are not found again
# Options that decide nothing, or that the key holds in another way.
_ELSEWHERE = "train tokenizer world directory mixture_seed tfds_dir manual_dir methods workers".split()


def prepare(
    config: DataConfig,
    requires: Requirements,
    tokenizer: Tokenizer,
    directory: Path,
    *,
    split: str,
    progress: bool = True,
) -> PreparedTrees:
    """Prepared trees of one split, found in `directory` or made there.

    Raises:
      ValueError: no record is left; the message holds the counts by reason.
    """
    if config.normalize_targets and requires.reads in ("scores", "probabilities"):
        raise ValueError(f"normalize_targets would change {requires.reads}, which are left as they are: drop it")
    told = tokenizer.on_day(config.date or first_day(tokenizer, Path(directory)))
    asked = Asked(config, requires, split, Path(directory))
    target = asked.directory / f"{split}-{_key(asked, told)}"
    if target.exists():
        try:
            return open_trees(target)
        except (ValueError, OSError) as error:  # a damaged manifest or index, or a file that is not there
            print(f"{error}. They are prepared again", file=sys.stderr, flush=True)
            shutil.rmtree(target)
    with parts_of(target) as folder:
        # Another process may have made it while this one waited.
        return open_trees(target) if target.exists() else _make(asked, told, target, folder, progress)


def records_of(
    config: DataConfig,
    requires: Requirements,
    tokenizer: Tokenizer,
    directory: Path,
    trees: PreparedTrees,
    *,
    columns: Sequence[str] = (),
) -> Iterator[tuple[Record, TokenTree]]:
    """The records that prepared trees were made of, each with its tree, in the trees' order; they are read again.

    Targets of the records are those before `normalize_targets`. Arguments as `prepare` took them, and:

    Args:
      columns: further columns of the files, kept in `Record.columns` where a row has them.

    Raises:
      ValueError: a record no longer becomes the tree that was prepared, or some are not there any more.
    """
    tokenizer = as_prepared(tokenizer, trees)
    asked = Asked(config, requires, trees.manifest["split"], Path(directory))
    index = 0
    for _, record in TreatedRecords(asked, columns=columns):
        made = encode(record, tokenizer, config.encoding)
        if isinstance(made, Rejection):
            continue
        if index == len(trees) or not same_tokens(made, tree := trees[index]):
            raise ValueError(f"{record.source} does not become tree {index} of {trees.directory}: prepare them again")
        yield record, tree
        index += 1
    if index < len(trees):
        raise ValueError(f"no record becomes tree {index} of {trees.directory} any more: prepare them again")


def _key(asked: Asked, tokenizer: Tokenizer) -> str:
    """Of everything that the trees depend on."""
    digest = hashlib.sha256()
    for source in asked.opened:
        digest.update(source.fingerprint())
    refuse_copies(asked.opened)
    facts = [_ENCODING, _options(asked.config), asked.requires.of_data(), tokenizer.fingerprint, asked.split]
    if asked.sources[0].share is not None:  # which records a mixture draws depends on the sources' names
        facts += [asked.config.mixture_seed, [dataclasses.asdict(source) for source in asked.sources]]
    facts += [step.fingerprint() for step in asked.steps]
    digest.update(json.dumps(facts, sort_keys=True).encode())
    return digest.hexdigest()[:16]


def _normalization(asked: Asked, tokenizer: Tokenizer, records: TreatedRecords) -> Normalization | None:
    """Constants of the training set, which another set takes over; None where targets stay as they are."""
    if not asked.config.normalize_targets or asked.requires.imitates:
        return None
    if asked.split == "train":
        return measure_targets(record for _, record in records)
    train = prepare(asked.config, asked.requires, tokenizer, asked.directory, split="train")
    return Normalization(**train.manifest["normalization"])


def _make(asked: Asked, tokenizer: Tokenizer, target: Path, folder: Path, progress: bool) -> PreparedTrees:
    """Encodes the records into parts in `folder`, which become the dataset `target`."""
    config, records = asked.config, TreatedRecords(asked, progress=progress)
    constants = _normalization(asked, tokenizer, records)
    pairs = records if constants is None else ((number, normalized(own, constants)) for number, own in records)
    encoder = PartEncoder(tokenizer, config.encoding, folder)
    parts = list(encode_parts(pairs, encoder, workers=config.workers, progress=progress))
    accounts, counts, last = _add_up(parts, records)
    account, division = sum(accounts, Account()), records.division()
    if not sum(counts):
        fix = account.main_loss()
        if asked.holds_out and account["read"].kept and not any(s.read for s in list(account.stages.values())[1:]):
            fix = f": data.holdout={config.holdout:g} may be too small for it, or too large; or give data.eval"
        raise ValueError(f"{asked.given}: no record of the {asked.split} split is left\n{division}{fix}\n\n{account}")
    index = read_index(folder, len(parts))
    lengths = summarize(index.lengths, index.pairs)
    facts = {
        "source": asked.given,
        "sources": _describe(asked.sources, accounts, counts),
        "split": asked.split,
        "requires": asked.requires.of_data(),
        "tokenizer": {
            "name": config.tokenizer,
            "fingerprint": tokenizer.fingerprint,
            "fingerprints": dict(tokenizer.fingerprints),
            "date": tokenizer.date,
        },
        "end_ids": ends_among(last, tokenizer),
        "options": _options(config),
        "methods": provenance(asked.steps, account),
        "normalization": None if constants is None else dataclasses.asdict(constants),
        "account": account.as_dict(),
        "account_text": "\n\n".join([str(account), division, *_source_table(asked.sources, accounts, counts)]),
        "lengths": lengths.as_dict(),
        "lengths_text": str(lengths),
    }
    return finish(target, folder, parts, index, facts)


def _add_up(
    parts: Sequence[dict[str, Any]], records: TreatedRecords
) -> tuple[list[Account], list[int], collections.Counter[int]]:
    """By source the account and the number of trees; and how often every id ends a response."""
    accounts = [passage.account + Account({"encode": Stage()}) for passage in records.passages]
    counts, last = [0] * len(accounts), collections.Counter()
    for part in parts:
        accounts[part["source"]] += Account({"encode": Stage.of(part["stage"])})
        counts[part["source"]] += part["trees"]
        for token, count in part["last"]:
            last[token] += count
    return accounts, counts, last


def _describe(sources: Sequence[Source], accounts: Sequence[Account], counts: Sequence[int]) -> list[dict[str, Any]]:
    """Where trees come from: those of source i are `trees` in number, and follow those of the sources before it."""
    return [
        {"name": source.name, "share": source.share, "trees": count, "account": account.as_dict()}
        for source, account, count in zip(sources, accounts, counts, strict=True)
    ]


def _source_table(sources: Sequence[Source], accounts: Sequence[Account], counts: Sequence[int]) -> list[str]:
    """One line a source, where there are several."""
    if len(sources) == 1:
        return []
    width = max(len(source.name) for source in sources)
    lines = [f"{'source':<{width}} {'asked':>7} {'read':>8} {'usable':>8} {'trees':>8} {'is':>7}"]
    for source, account, count in zip(sources, accounts, counts, strict=True):
        asked = "all" if source.share is None else f"{source.share:.1%}"
        read, usable = account["read"].read, account["adapt"].outputs
        lines.append(f"{source.name:<{width}} {asked:>7} {read:>8} {usable:>8} {count:>8} {count / sum(counts):>7.1%}")
    return ["\n".join(lines)]


def _options(config: DataConfig) -> dict[str, Any]:
    """The options that decide what given records become."""
    facts = dataclasses.asdict(config)
    for elsewhere in _ELSEWHERE:
        del facts[elsewhere]
    return facts


def short_account(trees: PreparedTrees) -> str:
    """What a run says of a split: a line of counts and lengths, then the stages at which something was dropped."""
    manifest, stages = trees.manifest, Account.of(trees.manifest["account"]).stages
    sizes = (
        f"{name} {values['median']:.0f} (at most {values['max']:.0f})"
        for name, values in manifest["lengths"]["lengths"].items()
        if name in ("prompt", "response")
    )
    read = stages["read"].read
    noticed = sum((stage.found for stage in stages.values()), collections.Counter[str]())
    for stage in stages.values():
        noticed -= stage.dropped
    counts = "".join(f"; {count} {reason}" for reason, count in noticed.most_common())
    line = (
        f"{len(trees)} trees from {read} records; tokens, median: {', '.join(sizes)}; sharing prompts saves "
        f"{manifest['lengths']['token_saving']:.2f}x{counts}; all of it: {trees.directory / 'manifest.json'}"
    )
    dropped = [str(Account({name: stage})) for name, stage in stages.items() if stage.dropped]
    return "\n".join([line, *dropped, *_day(trees)])


def full_account(trees: PreparedTrees) -> str:
    """Counts by reason and length statistics of prepared trees, as text, and the day that their template was told."""
    return "\n\n".join([trees.manifest["account_text"], *_day(trees), trees.manifest["lengths_text"]])


def _day(trees: PreparedTrees) -> list[str]:
    told = trees.manifest["tokenizer"].get("date")
    return [f"the chat template reads the clock, and was told {told}: --config.data.date={told}"] if told else []
