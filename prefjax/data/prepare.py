"""Preference data, or the synthetic world, made into prepared token trees: read, split, adapt, mix, encode, store.

What was prepared once is found again by a key over everything it depends on: the sources' content, the options, the
tokenizer. The manifest beside the trees says what happened to every record of every source.
"""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from prefjax.data import statistics
from prefjax.data.encoding import EncodingPolicy, encode, encode_all, end_id
from prefjax.data.formats import Columns, RecordFormat
from prefjax.data.methods.registry import Step, apply_methods, columns_of, parse_methods, provenance, split_steps
from prefjax.data.records import Record
from prefjax.data.report import Rejection, Report
from prefjax.data.sources import OpenSource, Source, open_sources, parse_sources, take_shares
from prefjax.data.store import PreparedTrees, open_trees, same_tokens, write_trees
from prefjax.data.synthetic import World, write_jsonl
from prefjax.data.tokenizers import Tokenizer
from prefjax.data.transforms import Normalization, adapt, normalize_targets
from prefjax.data.trees import TokenTree

SYNTHETIC = "synthetic"
SPLITS = ("train", "eval")
_ENCODING = 2  # of what `encode` makes of a record: prepared trees of an earlier number are not found again
_RANKED = 4  # responses of a ranking of the synthetic world
_PARTS = 10_000  # resolution of the held-out share


@dataclasses.dataclass(frozen=True)
class WorldOptions:
    """The synthetic world's draws. temperature and flip_rate make training labels noisy; held-out labels are clean."""

    train_examples: int = 8192
    eval_examples: int = 512
    temperature: float = 0.0
    flip_rate: float = 0.0
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which records, and how they become token trees.

    train, eval        "synthetic"; a file or glob of .jsonl, .jsonl.gz, .parquet; a named dataset and its split as in
                       "hh_rlhf/harmless-base:train" (docs/datasets.md); "hf:owner/name:split" with the library
                       datasets; or several, "a + b" for all records of both and "0.7 a + 0.3 b" for shares. An empty
                       `eval` holds out `holdout` of the training prompts (the synthetic world has a held-out split of
                       its own).
    tokenizer          "byte", or a Hugging Face tokenizer folder.
    chat_template      None: the tokenizer's own; "plain", or a Jinja template.
    rankings           "best_worst", "adjacent", "all": which pairs a ranking makes; None: the objective decides.
    pair_targets       "labels": 1 and 0; "scores": the file's scores, for objectives that read rewards or scores.
    normalize_targets  mean 0, variance 1 over the training set (DRO's rewards; never scores, which only compare the
                       responses of one prompt).
    methods            data methods for training records, as "rso(count=8) | flip_labels(rate=0.1)"; see
                       docs/data_methods.md. Of a mixture each source goes through them by itself, before shares are
                       taken. Held-out records stay as they are.
    directory          where prepared trees are kept and found again; empty: inside the run's workdir.
    mixture_seed       which records a mixture with shares takes.
    tfds_dir           where named datasets are downloaded and built; empty: TFDS's own, ~/tensorflow_datasets.
    manual_dir         offline: a folder with <dataset>/<file> of named datasets; empty: they are downloaded.
    """

    train: str = SYNTHETIC
    eval: str = ""
    holdout: float = 0.05
    tokenizer: str = "byte"
    chat_template: str | None = None
    rankings: str | None = None
    pair_targets: str = "labels"
    normalize_targets: bool = False
    methods: str = ""
    directory: str = ""
    mixture_seed: int = 0
    tfds_dir: str = ""
    manual_dir: str = ""
    format: RecordFormat = RecordFormat()
    encoding: EncodingPolicy = EncodingPolicy()
    world: WorldOptions = WorldOptions()

    def __post_init__(self):
        if not self.train:
            raise ValueError("data.train is empty: give 'synthetic', or a preference file")
        if not 0 <= self.holdout < 1:
            raise ValueError(f"data.holdout={self.holdout} must be a share in [0, 1)")
        if not self.eval and self.train != SYNTHETIC and not self.holdout:
            raise ValueError("nothing to evaluate on: set data.eval to a file or data.holdout above 0")
        columns_of(parse_methods(self.methods))
        for given in filter(None, (self.train, self.eval)):
            if given != SYNTHETIC and SYNTHETIC in (source.name for source in parse_sources(given)):
                raise ValueError(f"{given!r}: the synthetic world cannot be mixed with other data")


@dataclasses.dataclass(frozen=True)
class Need:
    """What an objective asks of records: see `transforms.adapt`."""

    group_size: int | None
    reads: str = "nothing"
    best_only: bool = False
    least: int = 1
    numbers: tuple[str, ...] = ()
    spans: bool = False


def prepare(
    config: DataConfig, need: Need, tokenizer: Tokenizer, directory: Path, *, split: str, progress: bool = True
) -> PreparedTrees:
    """Prepared trees of one split, found in `directory` or made there.

    Raises:
      ValueError: no record is left; the message holds the counts by reason.
    """
    if config.normalize_targets and need.reads == "scores":
        raise ValueError("normalize_targets would change scores, which are left as they are: drop it")
    given = _given(config, need, split, directory)
    sources = parse_sources(given)
    opened = open_sources(sources, data_dir=config.tfds_dir, manual_dir=config.manual_dir)
    steps = parse_methods(config.methods) if split == "train" else ()
    key = _key(config, need, tokenizer, split, sources, opened, steps)
    target = Path(directory) / f"{split}-{key}"
    if (target / "manifest.json").exists():
        return open_trees(target)

    # Lists by source, from here on.
    records, reports, division = _gather(config, need, split, sources, opened, steps, progress)
    constants = None
    if config.normalize_targets and not need.best_only:
        constants = _normalization(config, need, tokenizer, directory, split)
        if any(records):
            _, constants = normalize_targets([record for own in records for record in own], constants)
            records = [normalize_targets(own, constants)[0] for own in records]
    trees, counts = [], []
    for index, own in enumerate(records):
        encoded, report = encode_all(own, tokenizer, config.encoding, progress=progress)
        reports[index] += report
        trees += encoded
        counts.append(len(encoded))
    report = sum(reports, Report())
    if not trees:
        raise ValueError(f"{given}: no record of the {split} split is left\n\n{report}")
    lengths = statistics.describe(trees)
    facts = {
        "source": given,
        "sources": _describe(sources, reports, counts),
        "split": split,
        "need": dataclasses.asdict(need),
        "tokenizer": {
            "name": config.tokenizer,
            "fingerprint": tokenizer.fingerprint,
            "fingerprints": dict(tokenizer.fingerprints),
        },
        "end_id": end_id(tokenizer, chat=any(record.is_chat for own in records for record in own)),
        "options": _options(config),
        "methods": provenance(steps, report),
        "normalization": None if constants is None else dataclasses.asdict(constants),
        "report": report.as_dict(),
        "report_text": "\n\n".join([str(report), division, *_source_table(sources, reports, counts)]),
        "statistics": lengths.as_dict(),
        "statistics_text": str(lengths),
    }
    return write_trees(target, trees, manifest=facts)


def records_of(
    config: DataConfig,
    need: Need,
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
    split = trees.manifest["split"]
    sources = parse_sources(_given(config, need, split, directory))
    opened = open_sources(sources, data_dir=config.tfds_dir, manual_dir=config.manual_dir)
    steps = parse_methods(config.methods) if split == "train" else ()
    records, _, _ = _gather(config, need, split, sources, opened, steps, progress=True, columns=columns)
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
    need: Need,
    split: str,
    sources: Sequence[Source],
    opened: Sequence[OpenSource],
    steps: Sequence[Step],
    progress: bool,
    columns: Sequence[str] = (),
) -> tuple[list[list[Record]], list[Report], str]:
    """Records and reports by source, shares taken, and how the splits were divided."""
    read_by_steps = columns_of(steps)
    more = dataclasses.replace(read_by_steps, record=tuple(dict.fromkeys((*read_by_steps.record, *columns))))
    taken = [_take(source, config, need, split, steps, stream, progress, more) for stream, source in enumerate(opened)]
    records, reports = [own for own, _, _ in taken], [report for _, report, _ in taken]
    read, kept = (sum(count) for count in zip(*(counts for _, _, counts in taken), strict=True))
    division = f"split {split}: all {read} records"
    if _holds_out(config):
        division = (
            f"split {split}: {kept} of {read} records; a share of {config.holdout:g} of the prompts, "
            "chosen by their hash, makes the eval split"
        )
    if sources[0].share is not None:
        records, drawn = take_shares(records, sources, config.mixture_seed)
        reports = [report + more for report, more in zip(reports, drawn, strict=True)]
    return records, reports, division


def _take(
    source: OpenSource,
    config: DataConfig,
    need: Need,
    split: str,
    steps: Sequence[Step],
    stream: int,
    progress: bool,
    more: Columns,
) -> tuple[list[Record], Report, tuple[int, int]]:
    """A source's records of the split as the objective needs them, a report, and how many there were before and after
    holding out."""
    records, report = source.read(config.format, more=more, progress=progress)
    read = len(records)
    if _holds_out(config):
        records = [record for record in records if _is_held_out(record, config.holdout) == (split == "eval")]
    options = dict(rankings=config.rankings, pair_targets=config.pair_targets, least=need.least)
    options |= dict(numbers=need.numbers, spans=need.spans)
    if need.best_only:
        options = dict(best_only=True)
    kept = len(records)
    before, after = split_steps(steps)
    records, shaped = apply_methods(records, before, stream=stream)
    records, adapted = adapt(records, group_size=need.group_size, reads=need.reads, **options)
    records, treated = apply_methods(records, after, stream=stream, first=len(before) + 1)
    return records, report + shaped + adapted + treated, (read, kept)


def _holds_out(config: DataConfig) -> bool:
    return not config.eval and config.train != SYNTHETIC


def _describe(sources: Sequence[Source], reports: Sequence[Report], counts: Sequence[int]) -> list[dict[str, Any]]:
    """Where trees come from: those of source i are `trees` in number, and follow those of the sources before it."""
    return [
        {"name": source.name, "share": source.share, "trees": count, "report": report.as_dict()}
        for source, report, count in zip(sources, reports, counts, strict=True)
    ]


def _source_table(sources: Sequence[Source], reports: Sequence[Report], counts: Sequence[int]) -> list[str]:
    """One line a source, where there are several."""
    if len(sources) == 1:
        return []
    width = max(len(source.name) for source in sources)
    lines = [f"{'source':<{width}} {'asked':>7} {'read':>8} {'usable':>8} {'trees':>8} {'is':>7}"]
    for source, report, count in zip(sources, reports, counts, strict=True):
        asked = "all" if source.share is None else f"{source.share:.1%}"
        read, usable = report["read"].read, report["adapt"].outputs
        lines.append(f"{source.name:<{width}} {asked:>7} {read:>8} {usable:>8} {count:>8} {count / sum(counts):>7.1%}")
    return ["\n".join(lines)]


def _given(config: DataConfig, need: Need, split: str, directory: Path) -> str:
    """What to read; the synthetic world's records are written down first, so that they can be looked at."""
    given = config.eval if split == "eval" and config.eval else config.train
    if given != SYNTHETIC:
        return given
    options, world = config.world, World(config.world.seed)
    count = options.train_examples if split == "train" else options.eval_examples
    noise = dict(temperature=options.temperature, flip_rate=options.flip_rate) if split == "train" else {}
    if need.best_only:
        kind, records = "demonstrations", world.demonstrations(count, split=split)
    elif need.group_size is None and need.reads == "rewards":
        # Held-out rewards come two to a prompt, so that reward accuracy can be read.
        kind = "rewarded" if split == "train" else "rankings"
        records = world.rewarded(count) if split == "train" else world.rankings(count, 2, split=split)
    elif need.group_size is None and need.reads == "scores":
        kind, records = f"rankings{_RANKED}", world.rankings(count, _RANKED, split=split)
    elif need.spans:
        kind, records = "annotated", world.annotated(count, split=split, **noise)
    elif need.numbers or need.reads == "scores":
        # What grades a pair is no noise of its label, so held-out pairs have it too.
        grades = dict(temperature=options.temperature, flip_rate=options.flip_rate)
        kind, records = "graded", world.graded(count, split=split, **grades)
    elif need.group_size is None and split == "train":
        kind, records = "unpaired", world.unpaired(count, split=split, **noise)
    else:
        kind, records = "pairs", world.pairs(count, split=split, **noise)
    identity = hashlib.sha256(repr((options, kind, split)).encode()).hexdigest()[:8]
    path = Path(directory) / f"synthetic-{kind}-{split}-{identity}.jsonl"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        write_jsonl(partial, records)
        partial.rename(path)
    return str(path)


def _key(
    config: DataConfig,
    need: Need,
    tokenizer: Tokenizer,
    split: str,
    sources: Sequence[Source],
    opened: Sequence[OpenSource],
    steps: Sequence[Step],
) -> str:
    digest = hashlib.sha256()
    for source in opened:
        digest.update(source.fingerprint())
    facts = [_ENCODING, _options(config), dataclasses.asdict(need), tokenizer.fingerprint, split]
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


def _is_held_out(record: Record, share: float) -> bool:
    """By a hash of the prompt, so that all records of one prompt fall on one side, whatever else the file holds."""
    digest = hashlib.sha256(repr(record.prompt).encode()).digest()
    return int.from_bytes(digest[:8], "big") % _PARTS < share * _PARTS


def _normalization(
    config: DataConfig, need: Need, tokenizer: Tokenizer, directory: Path, split: str
) -> Normalization | None:
    """None on the training set, which measures its own constants; those of the training set elsewhere."""
    if split == "train":
        return None
    train = prepare(config, need, tokenizer, directory, split="train")
    return Normalization(**train.manifest["normalization"])


def full_report(trees: PreparedTrees) -> str:
    """Counts by reason and length statistics of prepared trees, as text."""
    return "\n\n".join([trees.manifest["report_text"], trees.manifest["statistics_text"]])
