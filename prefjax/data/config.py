"""Which records a stage of a run is given, and how they become token trees, as options."""

import dataclasses

from prefjax.data.chat_templates import check_given
from prefjax.data.encoding import EncodingPolicy
from prefjax.data.formats import RecordFormat
from prefjax.data.methods.sequences import columns_of, parse_methods
from prefjax.data.sources import parse_sources
from prefjax.data.transforms import PAIR_TARGETS, RANKING_RULES
from prefjax.data.world_records import WorldOptions
from prefjax.options import check_ranges, option

SYNTHETIC = "synthetic"


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
