"""Writes docs/config.md from the dataclasses of a run's options: python -m docs.write_config"""

import dataclasses
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

from prefjax.options import REQUIRED, Option, options_of
from prefjax.policies.rounds import RoundsConfig
from prefjax.training.config import StageConfig
from prefjax.training.runs import SamplingConfig

OUTPUT = Path(__file__).with_name("config.md")
INTRODUCTION = """# Options of a run

Written by `python -m docs.write_config` from the dataclasses; do not edit.

Every option is a flag of the commands that take `--config`: `--config.optimizer.mu_dtype=bfloat16`. A file of
`configs/` states what differs from the defaults here, and a flag comes last; `--help` beside `--config=FILE` shows the
values of that file. Numbers are finite. `config.json` in a run's folder holds all of them.

- `--config.loss.NAME`: the options of the objective, in [objectives.md](objectives.md). The objective is the word
  behind the colon in `configs/quickstart.py` and `configs/finetune.py`.
- `--config.sft.NAME`: the same options of an SFT stage before the run's own. What is not said of it is as in the run
  itself, but for `reference`, `value_network`, `reward_head`, `lora`, `accumulation` and `data.methods`, which are the
  defaults; where the file states any of `sft.optimizer` or `sft.train`, the rest of that section are defaults too.
  There is such a stage as soon as anything is said of it, and `--config.sft={}` leaves out the one of a file.
- Where training starts from a Hugging Face folder, `model` but for dtype, param_dtype, remat and attention is that
  folder's, and so is the tokenizer if `data.tokenizer` is empty.
- A tuple is given as `--config.train.writers="('tensorboard', 'wandb')"`, or by the flag twice.
"""

CONTINUING = """
## Continuing a run

A command given again continues its run from the newest sound checkpoint. What decides the result must be the same, of
every stage that has a checkpoint already; a folder without one is free, so a corrected command goes on there. An option
that came after a run was begun has its default in it, and a line names it. One process at a time trains in a folder.
Compared are hashes of the training trees, of the held-out trees, of the tokenizer, of the parameters that training
starts from and of the reference's, wherever they lie by now, and these options:

{same}.

These may change, and so may the workdir's name, the number of devices and that of processes. With other `train.steps`
the run becomes longer or shorter. With more `train.epochs`, or `train.steps` in place of them, it becomes longer: the
epochs that it was to have end as they would have, and others follow. A schedule of the learning rate goes by the new
length from there on.

{free}.
"""


def sections(cls: type, path: str) -> Iterator[tuple[str, type]]:
    """The dataclass at a path, and those inside it."""
    yield path, cls
    for field in options_of(cls):
        if dataclasses.is_dataclass(field.kind):
            yield from sections(field.kind, f"{path}.{field.name}")


TABLES = [*sections(StageConfig, "config"), ("config.sampling", SamplingConfig), ("config.rounds", RoundsConfig)]


def section(path: str, cls: type) -> str:
    """A table of the fields that are no dataclasses themselves, under what the class says of itself."""
    rows = [row(field) for field in options_of(cls) if not dataclasses.is_dataclass(field.kind)]
    header = "| field | default | meaning | range |\n| --- | --- | --- | --- |\n"
    return f"\n## {path}\n\n{inspect.cleandoc(cls.__doc__)}\n\n{header}" + "\n".join(rows) + "\n"


def row(field: Option) -> str:
    default = "" if field.default is REQUIRED else f"`{field.default!r}`".replace("|", r"\|")
    cells = (f"`{field.name}`", default, field.meaning, str(field.range) or kind(field))
    return "| " + " | ".join(cell if cell.startswith("`") else escaped(cell) for cell in cells) + " |"


def continuing() -> str:
    """Which options a run that is continued must have again, and which not."""
    lists: dict[bool, list[str]] = {True: [], False: []}
    for path, cls in TABLES:
        for field in options_of(cls):
            if not dataclasses.is_dataclass(field.kind):
                lists[field.decides].append(f"`{path}.{field.name}`")
    return CONTINUING.format(same=", ".join(lists[True]), free=", ".join(lists[False]))


def kind(field: Option) -> str:
    """What goes where there is no range."""
    return {bool: "true, false", str: "text", tuple: "texts"}.get(field.kind, "")


def escaped(text: str) -> str:
    return "`".join(
        part if code % 2 else re.sub(r"([|*_<>])", r"\\\1", part) for code, part in enumerate(text.split("`"))
    ).replace("\n", " ")


def document() -> str:
    """The whole document."""
    return INTRODUCTION + "".join(section(path, cls) for path, cls in TABLES) + continuing()


if __name__ == "__main__":
    OUTPUT.write_text(document())
