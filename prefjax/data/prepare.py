"""Preference data, or the synthetic world, made into prepared token trees: read, split, adapt, mix, encode, store.

What was prepared once is found again by a key over everything it depends on: the sources' content, the options, the
tokenizer. The manifest beside the trees says what happened to every record of every source. Records pass as a
stream, so memory grows by what an index holds of a tree alone; who was killed finds the parts that were encoded.
"""

import collections
import dataclasses
import functools
import hashlib
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from prefjax.data.account import Account, Rejection, Stage
from prefjax.data.chat_templates import check_given
from prefjax.data.days import as_prepared, first_day
from prefjax.data.encoding import EncodingPolicy, encode, ends_among
from prefjax.data.encoding_parts import PartEncoder, encode_parts
from prefjax.data.formats import RecordFormat
from prefjax.data.jsonl import write_rows
from prefjax.data.methods.sequences import Step, columns_of, parse_methods, provenance
from prefjax.data.records import Record
from prefjax.data.sources import OpenSource, Source, open_sources, parse_sources, refuse_copies
from prefjax.data.tokenizers import Tokenizer
from prefjax.data.transforms import PAIR_TARGETS, RANKING_RULES, Normalization, measure_targets, normalized
from prefjax.data.treatment import TreatedRecords, Treatment
from prefjax.data.world_records import WorldOptions, world_records
from prefjax.options import check_ranges, option
from prefjax.requirements import Requirements
from prefjax.rows.lengths import summarize
from prefjax.rows.parts import finish, parts_of, read_index
from prefjax.rows.store import PreparedTrees, open_trees
from prefjax.rows.trees import TokenTree
from prefjax.rows.vectors import same_tokens

SYNTHETIC = "synthetic"
SPLITS = ("train", "eval")
_ENCODING = 6  # of encoded records and the manifest: prepared trees of an earlier number are not found again
# Options that decide nothing, or that the key holds in another way.
_ELSEWHERE = "train tokenizer world directory mixture_seed tfds_dir manual_dir methods workers".split()


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which records, and how they become token trees."""

    train: str = option(
        SYNTHETIC,
        '"synthetic"; a file, a folder or a glob pattern (docs/shapes.md); a named dataset and its split as in '
        '"hh_rlhf/harmless-base:train" (docs/datasets.md); "hf:owner/name:split" with the library datasets; or '
        'several, "a + b" for all records of both and "0.7 a + 0.3 b" for shares',
        decides=False,
    )
    eval: str = option(
        "",
        "held-out records, given as `train` is; empty: `holdout` of the training prompts (the synthetic world has a "
        "held-out split of its own)",
        decides=False,
    )
    holdout: float = option(0.05, "share of the training prompts held out where `eval` is empty", at_least=0, below=1)
    tokenizer: str = option(
        "byte",
        '"byte", or a Hugging Face tokenizer folder; empty: that of the Hugging Face folder that training starts from',
        decides=False,
    )
    chat_template: str | None = option(None, 'None: the tokenizer\'s own; "plain", or a Jinja template')
    chat_template_kwargs: str = option("", "what else the template is given, a JSON object; a record's own go first")
    date: str = option(
        "", "the day that templates which read the clock are told, as 2026-11-29; empty: that of the first preparation"
    )
    rankings: str | None = option(
        None, "which pairs a ranking makes; None: the objective decides", choices=RANKING_RULES
    )
    pair_targets: str = option(
        "labels",
        '"labels": 1 and 0; "scores": the file\'s scores, for objectives that read rewards, probabilities or scores; '
        "those of pairs that read scores take nothing else",
        choices=PAIR_TARGETS,
    )
    normalize_targets: bool = option(
        False,
        "mean 0, variance 1 over the training set (DRO's rewards; never scores, which only compare the responses of "
        "one prompt)",
    )
    methods: str = option(
        "",
        'data methods for training records, as "rso(count=8) | flip_labels(rate=0.1)", see docs/data_methods.md; of a '
        "mixture each source goes through them by itself, before shares are taken; held-out records stay as they are",
    )
    directory: str = option(
        "", "where prepared trees are kept and found again; empty: inside the run's workdir", decides=False
    )
    mixture_seed: int = option(0, "which records a mixture with shares takes", at_least=0, at_most=2**31 - 1)
    tfds_dir: str = option(
        "", "where named datasets are downloaded and built; empty: TFDS's own, ~/tensorflow_datasets", decides=False
    )
    manual_dir: str = option(
        "", "offline: a folder with <dataset>/<file> of named datasets; empty: they are downloaded", decides=False
    )
    workers: int = option(
        0,
        "processes that encode records; 0: one for each core, where there are more than 4,096 records; the result is "
        "the same for any number",
        at_least=0,
        decides=False,
    )
    format: RecordFormat = option(RecordFormat(), "how rows of files are read")
    encoding: EncodingPolicy = option(EncodingPolicy(), "limits of length")
    world: WorldOptions = option(WorldOptions(), "of the synthetic world")

    def __post_init__(self):
        check_ranges(self, "data")
        if not self.train:
            raise ValueError("data.train is empty: give --config.data.train=FILE, a dataset's name, or 'synthetic'")
        if not self.eval and self.train != SYNTHETIC and not self.holdout:
            raise ValueError("nothing to evaluate on: set data.eval to a file or data.holdout above 0")
        columns_of(parse_methods(self.methods))
        check_given(self.chat_template_kwargs, self.date)
        for given in filter(None, (self.train, self.eval)):
            if given != SYNTHETIC and SYNTHETIC in (source.name for source in parse_sources(given)):
                raise ValueError(f"{given!r}: the synthetic world cannot be mixed with other data")


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
    asked = _Asked(config, requires, told, Path(directory), split)
    target = asked.directory / f"{split}-{asked.key()}"
    if target.exists():
        try:
            return open_trees(target)
        except (ValueError, OSError) as error:  # a damaged manifest or index, or a file that is not there
            print(f"{error}. They are prepared again", file=sys.stderr, flush=True)
            shutil.rmtree(target)
    with parts_of(target) as folder:
        # Another process may have made it while this one waited.
        return open_trees(target) if target.exists() else _make(asked, target, folder, progress)


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
    asked = _Asked(config, requires, tokenizer, Path(directory), trees.manifest["split"])
    index = 0
    for _, record in asked.records(progress=True, columns=tuple(columns)):
        made = encode(record, tokenizer, config.encoding)
        if isinstance(made, Rejection):
            continue
        if index == len(trees) or not same_tokens(made, tree := trees[index]):
            raise ValueError(f"{record.source} does not become tree {index} of {trees.directory}: prepare them again")
        yield record, tree
        index += 1
    if index < len(trees):
        raise ValueError(f"no record becomes tree {index} of {trees.directory} any more: prepare them again")


@dataclasses.dataclass(frozen=True)
class _Asked:
    """What was asked for, and what it says of the sources."""

    config: DataConfig
    requires: Requirements
    tokenizer: Tokenizer
    directory: Path
    split: str

    @functools.cached_property
    def given(self) -> str:
        return _given(self.config, self.requires, self.split, self.directory)

    @functools.cached_property
    def sources(self) -> tuple[Source, ...]:
        return parse_sources(self.given)

    @functools.cached_property
    def opened(self) -> list[OpenSource]:
        return open_sources(self.sources, data_dir=self.config.tfds_dir, manual_dir=self.config.manual_dir)

    @functools.cached_property
    def steps(self) -> tuple[Step, ...]:
        return parse_methods(self.config.methods) if self.split == "train" else ()

    @property
    def holds_out(self) -> bool:
        return not self.config.eval and self.config.train != SYNTHETIC

    def records(self, *, progress: bool, columns: tuple[str, ...] = ()) -> TreatedRecords:
        config = self.config
        how = Treatment(
            record_format=config.format,
            requires=self.requires,
            split=self.split,
            holdout=config.holdout if self.holds_out else None,
            rankings=config.rankings,
            pair_targets=config.pair_targets,
            steps=self.steps,
            mixture_seed=config.mixture_seed,
            columns=columns,
        )
        return TreatedRecords(self.sources, self.opened, how, progress=progress)

    def key(self) -> str:
        """Of everything that the trees depend on."""
        digest = hashlib.sha256()
        for source in self.opened:
            digest.update(source.fingerprint())
        refuse_copies(self.opened)
        own = self.requires.of_data()
        facts = [_ENCODING, _options(self.config), own, self.tokenizer.fingerprint, self.split]
        if self.sources[0].share is not None:  # which records a mixture draws depends on the sources' names
            facts += [self.config.mixture_seed, [dataclasses.asdict(source) for source in self.sources]]
        facts += [step.fingerprint() for step in self.steps]
        digest.update(json.dumps(facts, sort_keys=True).encode())
        return digest.hexdigest()[:16]

    def normalization(self, records: TreatedRecords) -> Normalization | None:
        """Constants of the training set, which another set takes over; None where targets stay as they are."""
        if not self.config.normalize_targets or self.requires.imitates:
            return None
        if self.split == "train":
            return measure_targets(record for _, record in records)
        train = prepare(self.config, self.requires, self.tokenizer, self.directory, split="train")
        return Normalization(**train.manifest["normalization"])


def _make(asked: _Asked, target: Path, folder: Path, progress: bool) -> PreparedTrees:
    """Encodes the records into parts in `folder`, which become the dataset `target`."""
    config, tokenizer = asked.config, asked.tokenizer
    records = asked.records(progress=progress)
    constants = asked.normalization(records)
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


def _given(config: DataConfig, requires: Requirements, split: str, directory: Path) -> str:
    """What to read; the synthetic world's records are written down first, so that they can be looked at."""
    given = config.eval if split == "eval" and config.eval else config.train
    if given != SYNTHETIC:
        return given
    kind, records = world_records(config.world, requires, split)
    identity = hashlib.sha256(repr((config.world, kind, split)).encode()).hexdigest()[:8]
    path = Path(directory) / f"synthetic-{kind}-{split}-{identity}.jsonl"
    if not path.exists():
        write_rows(path, records)
    return str(path)


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
