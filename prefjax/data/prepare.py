"""Preference data, or the synthetic world, made into prepared token trees: read, split, adapt, mix, encode, store.

What was prepared once is found again by a key over everything it depends on: the sources' content, the options, the
tokenizer. The manifest beside the trees says what happened to every record of every source.
"""

import dataclasses
import hashlib
import itertools
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from prefjax.data.account import Account, Rejection
from prefjax.data.chat_templates import check_given
from prefjax.data.days import as_prepared, first_day
from prefjax.data.encoding import EncodingPolicy, encode, encode_all, end_ids
from prefjax.data.formats import Columns, RecordFormat
from prefjax.data.jsonl import write_rows
from prefjax.data.methods.sequences import Step, apply_methods, columns_of, parse_methods, provenance, split_steps
from prefjax.data.records import Record
from prefjax.data.sources import OpenSource, Source, open_sources, parse_sources, take_shares
from prefjax.data.synthetic import World
from prefjax.data.tokenizers import Tokenizer
from prefjax.data.transforms import PAIR_TARGETS, RANKING_RULES, Normalization, adapt, normalize_targets
from prefjax.options import check_ranges, option
from prefjax.requirements import Requirements
from prefjax.rows.lengths import summarize_lengths
from prefjax.rows.store import PreparedTrees, open_trees, same_tokens, write_trees
from prefjax.rows.trees import TokenTree

SYNTHETIC = "synthetic"
SPLITS = ("train", "eval")
_ENCODING = 6  # of encoded records and the manifest: prepared trees of an earlier number are not found again
_RANKED = 4  # responses of a ranking of the synthetic world
_PARTS = 10_000  # resolution of the held-out share


@dataclasses.dataclass(frozen=True)
class WorldOptions:
    """The synthetic world's draws. Held-out labels are clean, whatever makes training labels noisy."""

    train_examples: int = option(8192, "training records", at_least=1)
    eval_examples: int = option(512, "held-out records", at_least=1)
    temperature: float = option(0.0, "of the Bradley-Terry draw of training labels; 0: the better one wins", at_least=0)
    flip_rate: float = option(0.0, "share of training labels that are flipped", at_least=0, at_most=1)
    seed: int = option(0, "of the draws", at_least=0, at_most=2**31 - 1)

    def __post_init__(self):
        check_ranges(self, "data.world")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which records, and how they become token trees."""

    train: str = option(
        SYNTHETIC,
        '"synthetic"; a file or glob of .jsonl, .jsonl.gz, .parquet; a named dataset and its split as in '
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
    chat_template_kwargs: str = option("", "what else templates are given, a JSON object; a record's own go first")
    date: str = option("", "told to templates that read the clock, as 2026-11-29; empty: when first prepared, as kept")
    rankings: str | None = option(
        None, "which pairs a ranking makes; None: the objective decides", choices=RANKING_RULES
    )
    pair_targets: str = option(
        "labels",
        '"labels": 1 and 0; "scores": the file\'s scores, for objectives that read rewards or scores',
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
    format: RecordFormat = option(RecordFormat(), "how rows of files are read")
    encoding: EncodingPolicy = option(EncodingPolicy(), "limits of length")
    world: WorldOptions = option(WorldOptions(), "of the synthetic world")

    def __post_init__(self):
        check_ranges(self, "data")
        if not self.train:
            raise ValueError("data.train is empty: give 'synthetic', or a preference file")
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
    if config.normalize_targets and requires.reads == "scores":
        raise ValueError("normalize_targets would change scores, which are left as they are: drop it")
    given = _given(config, requires, split, directory)
    sources = parse_sources(given)
    opened = open_sources(sources, data_dir=config.tfds_dir, manual_dir=config.manual_dir)
    steps = parse_methods(config.methods) if split == "train" else ()
    key = _key(config, requires, tokenizer, split, sources, opened, steps)
    target = Path(directory) / f"{split}-{key}"
    if target.exists():
        try:
            return open_trees(target)
        except (ValueError, OSError) as error:  # a damaged manifest or index, or a file that is not there
            print(f"{error}. They are prepared again", file=sys.stderr, flush=True)
            shutil.rmtree(target)

    tokenizer = tokenizer.on_day(config.date or first_day(tokenizer, Path(directory)))
    # Lists by source, from here on.
    records, accounts, division = _gather(config, requires, split, sources, opened, steps, progress)
    constants = None
    if config.normalize_targets and not requires.imitates:
        constants = _normalization(config, requires, tokenizer, directory, split)
        if any(records):
            _, constants = normalize_targets([record for own in records for record in own], constants)
            records = [normalize_targets(own, constants)[0] for own in records]
    trees, counts = [], []
    for index, own in enumerate(records):
        encoded, account = encode_all(own, tokenizer, config.encoding, progress=progress)
        accounts[index] += account
        trees += encoded
        counts.append(len(encoded))
    account = sum(accounts, Account())
    if not trees:
        fix = f": data.holdout={config.holdout:g} may be too small for it, or too large; or give data.eval"
        fix = f"{division}{fix if _holds_out(config) else ''}"
        raise ValueError(f"{given}: no record of the {split} split is left\n{fix}\n\n{account}")
    lengths = summarize_lengths(trees)
    facts = {
        "source": given,
        "sources": _describe(sources, accounts, counts),
        "split": split,
        "requires": requires.of_data(),
        "tokenizer": {
            "name": config.tokenizer,
            "fingerprint": tokenizer.fingerprint,
            "fingerprints": dict(tokenizer.fingerprints),
            "date": tokenizer.date,
        },
        "end_ids": end_ids(trees, tokenizer),
        "options": _options(config),
        "methods": provenance(steps, account),
        "normalization": None if constants is None else dataclasses.asdict(constants),
        "account": account.as_dict(),
        "account_text": "\n\n".join([str(account), division, *_source_table(sources, accounts, counts)]),
        "lengths": lengths.as_dict(),
        "lengths_text": str(lengths),
    }
    return write_trees(target, trees, manifest=facts)


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
    split, tokenizer = trees.manifest["split"], as_prepared(tokenizer, trees)
    sources = parse_sources(_given(config, requires, split, directory))
    opened = open_sources(sources, data_dir=config.tfds_dir, manual_dir=config.manual_dir)
    steps = parse_methods(config.methods) if split == "train" else ()
    records, _, _ = _gather(config, requires, split, sources, opened, steps, progress=True, columns=columns)
    index = 0
    for record in itertools.chain.from_iterable(records):
        made = encode(record, tokenizer, config.encoding)
        if isinstance(made, Rejection):
            continue
        if index == len(trees) or not same_tokens(made, tree := trees[index]):
            raise ValueError(f"{record.source} does not become tree {index} of {trees.directory}: prepare them again")
        yield record, tree
        index += 1
    if index < len(trees):
        raise ValueError(f"no record becomes tree {index} of {trees.directory} any more: prepare them again")


def _gather(
    config: DataConfig,
    requires: Requirements,
    split: str,
    sources: Sequence[Source],
    opened: Sequence[OpenSource],
    steps: Sequence[Step],
    progress: bool,
    columns: Sequence[str] = (),
) -> tuple[list[list[Record]], list[Account], str]:
    """Records and accounts by source, shares taken, and how the splits were divided."""
    read_by_steps = columns_of(steps)
    more = dataclasses.replace(read_by_steps, record=tuple(dict.fromkeys((*read_by_steps.record, *columns))))
    taken = [
        _take(source, config, requires, split, steps, stream, progress, more) for stream, source in enumerate(opened)
    ]
    records, accounts = [own for own, _, _ in taken], [account for _, account, _ in taken]
    read, kept = (sum(count) for count in zip(*(counts for _, _, counts in taken), strict=True))
    division = f"split {split}: all {read} records"
    if _holds_out(config):
        division = (
            f"split {split}: {kept} of {read} records; a share of {config.holdout:g} of the prompts, "
            "chosen by their hash, makes the eval split"
        )
    if sources[0].share is not None:
        records, drawn = take_shares(records, sources, config.mixture_seed)
        accounts = [account + more for account, more in zip(accounts, drawn, strict=True)]
    return records, accounts, division


def _take(
    source: OpenSource,
    config: DataConfig,
    requires: Requirements,
    split: str,
    steps: Sequence[Step],
    stream: int,
    progress: bool,
    more: Columns,
) -> tuple[list[Record], Account, tuple[int, int]]:
    """A source's records of the split as the objective needs them, an account, and how many there were before and after
    holding out."""
    records, account = source.read(config.format, more=more, progress=progress)
    read = len(records)
    if _holds_out(config):
        records = [record for record in records if is_held_out(record, config.holdout) == (split == "eval")]
    kept = len(records)
    before, after = split_steps(steps)
    records = list(apply_methods(records, before, account, stream=stream))
    options = {} if requires.imitates else dict(rankings=config.rankings, pair_targets=config.pair_targets)
    records, adapted = adapt(records, requires, **options)
    account += adapted
    records = list(apply_methods(records, after, account, stream=stream, first=len(before) + 1))
    return records, account, (read, kept)


def _holds_out(config: DataConfig) -> bool:
    return not config.eval and config.train != SYNTHETIC


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
    options, world = config.world, World(config.world.seed)
    count = options.train_examples if split == "train" else options.eval_examples
    noise = dict(temperature=options.temperature, flip_rate=options.flip_rate) if split == "train" else {}
    if requires.imitates:
        kind, records = "demonstrations", world.demonstrations(count, split=split)
    elif requires.group_size is None and requires.reads == "rewards":
        # Held-out rewards come two to a prompt, so that reward accuracy can be read.
        kind = "rewarded" if split == "train" else "rankings"
        records = world.rewarded(count) if split == "train" else world.rankings(count, 2, split=split)
    elif requires.group_size is None and requires.reads == "scores":
        kind, records = f"rankings{_RANKED}", world.rankings(count, _RANKED, split=split)
    elif requires.token_labels:
        kind, records = "annotated", world.annotated(count, split=split, **noise)
    elif requires.pair_numbers or requires.reads == "scores":
        # What grades a pair is no noise of its label, so held-out pairs have it too.
        grades = dict(temperature=options.temperature, flip_rate=options.flip_rate)
        kind, records = "graded", world.graded(count, split=split, **grades)
    elif requires.group_size is None and split == "train":
        kind, records = "unpaired", world.unpaired(count, split=split, **noise)
    else:
        kind, records = "pairs", world.pairs(count, split=split, **noise)
    identity = hashlib.sha256(repr((options, kind, split)).encode()).hexdigest()[:8]
    path = Path(directory) / f"synthetic-{kind}-{split}-{identity}.jsonl"
    if not path.exists():
        write_rows(path, records)
    return str(path)


def _key(
    config: DataConfig,
    requires: Requirements,
    tokenizer: Tokenizer,
    split: str,
    sources: Sequence[Source],
    opened: Sequence[OpenSource],
    steps: Sequence[Step],
) -> str:
    digest = hashlib.sha256()
    for source in opened:
        digest.update(source.fingerprint())
    facts = [_ENCODING, _options(config), requires.of_data(), tokenizer.fingerprint, split]
    if sources[0].share is not None:  # which records a mixture draws depends on the sources' names
        facts += [config.mixture_seed, [dataclasses.asdict(source) for source in sources]]
    facts += [step.fingerprint() for step in steps]
    digest.update(json.dumps(facts, sort_keys=True).encode())
    return digest.hexdigest()[:16]


def _options(config: DataConfig) -> dict[str, Any]:
    """The options that decide what given records become."""
    facts = dataclasses.asdict(config)
    for elsewhere in ("train", "tokenizer", "world", "directory", "mixture_seed", "tfds_dir", "manual_dir", "methods"):
        del facts[elsewhere]
    return facts


def is_held_out(record: Record, share: float) -> bool:
    """By a hash of the prompt, so that all records of one prompt fall on one side, whatever else the file holds."""
    digest = hashlib.sha256(repr(record.prompt).encode()).digest()
    return int.from_bytes(digest[:8], "big") % _PARTS < share * _PARTS


def _normalization(
    config: DataConfig, requires: Requirements, tokenizer: Tokenizer, directory: Path, split: str
) -> Normalization | None:
    """None on the training set, which measures its own constants; those of the training set elsewhere."""
    if split == "train":
        return None
    train = prepare(config, requires, tokenizer, directory, split="train")
    return Normalization(**train.manifest["normalization"])


def full_account(trees: PreparedTrees) -> str:
    """Counts by reason and length statistics of prepared trees, as text."""
    return "\n\n".join([trees.manifest["account_text"], trees.manifest["lengths_text"]])
