"""The --config flag of the commands: a file says what differs, the dataclasses say the rest, flags change any field.

`get_config(argument)` of the file returns a ConfigDict, or a dict, of what differs from the defaults. It is completed
with every other field of a stage, of `sampling` and of what else the command reads, and of the stages before it
(`config.sft`), where None means "as in the run itself"; then flags --config.FIELD=VALUE are applied. If the file says
nothing of an architecture, that stays None too: it is the one of the Hugging Face folder, or of the run, that training
starts from.
"""

import dataclasses
import difflib
import itertools
import re
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags
from ml_collections.config_dict import placeholder
from ml_collections.config_flags import config_path

from experiments.command import is_expected
from experiments.elsewhere import hint
from prefjax.losses import Sum
from prefjax.losses import objective as find_objective
from prefjax.models import ModelConfig
from prefjax.options import REQUIRED, Option, options_of, stated, unknown_option, walk
from prefjax.training.config import StageConfig
from prefjax.training.runs import EARLIER, SamplingConfig

# Sections that an earlier stage has to itself: if a file states any of one, the rest of it are defaults.
_OWN = ("optimizer", "train")
_SHARED = ("train.writers",)  # but where metrics go is the run's
# What a command reads besides stages, by name.
Sections = Mapping[str, type]
_RUN: Sections = {"sampling": SamplingConfig}

flags.disclaim_key_flags()  # the flag belongs to the command that defines it, whose --help shows it


def define_config(
    *,
    flag_values: flags.FlagValues = flags.FLAGS,
    sys_argv: Sequence[str] | None = None,
    sections: Sections = types.MappingProxyType({}),
) -> flags.FlagHolder:
    """Defines --config=FILE:ARGUMENT, whose value is a complete and locked ConfigDict, and --config.FIELD=VALUE.

    Args:
      sys_argv: the command line that says which fields are flags; None: this process's.
      sections: dataclasses of options that the command reads besides those of a run, by their names in the config.
    """
    argv, sections = None if sys_argv is None else list(sys_argv), {**_RUN, **sections}
    words = help_text(sections=sections)
    holder = config_flags.DEFINE_config_file("config", None, words, flag_values=flag_values, sys_argv=argv)
    flag_values["config"].parser = _CompletingParser(flag_values["config"], argv, sections)
    return holder


def define_changes(config: ConfigDict, source: str) -> flags.FlagHolder:
    """Defines --config.FIELD=VALUE for a command whose config file is given.

    Args:
      source: that file.
    """
    complete(config, source)
    _check_fields(config, fields_given(sys.argv))
    return config_flags.DEFINE_config_dict("config", config, help_text(config, source))


class _CompletingParser(flags.ArgumentParser):
    """Completes what a file returns before the flags of its fields are applied, and shows its values in --help.

    Args:
      flag: the one that `config_flags` defined.
    """

    def __init__(self, flag: flags.Flag, argv: list[str] | None, sections: Sections):
        self._flag, self._file, self._argv, self._sections = flag, flag.parser, argv, sections

    def parse(self, argument: str) -> ConfigDict:
        file = argument.partition(":")[0]
        if not Path(file).is_file():
            near = difflib.get_close_matches(file, [str(path) for path in Path("configs").glob("*.py")], n=1)
            advice = f"did you mean {near[0]}?" if near else "configs/ has some, as configs/finetune.py:dpo"
            raise ValueError(f"there is no file {file!r}: {advice}")
        argv = flags.FLAGS.read_flags_from_files(sys.argv if self._argv is None else self._argv, force_gnu=False)
        given = fields_given(argv)
        config = complete(self._read(argument), argument, given, self._sections)
        _check_fields(config, given)
        self._flag.help = help_text(config, argument, self._sections)
        return config

    def _read(self, argument: str) -> ConfigDict:
        try:
            return self._file.parse(argument)
        except (TypeError, ValueError) as error:  # its text is a traceback; what a file raised on purpose needs none
            if error.__context__ is not None and is_expected(error.__context__):
                raise ValueError(str(error.__context__)) from None
            raise

    def flag_type(self) -> str:
        return "FILE:ARGUMENT"


def fields_given(argv: Sequence[str]) -> dict[str, str]:
    """The fields that a command line sets, and their values as written there."""
    given = {}
    for argument, following in zip(argv, [*argv[1:], ""], strict=True):
        if match := re.fullmatch(r"--?(?:no)?config\.([^=]+)(?:=(.*))?", argument, re.DOTALL):
            given[match[1]] = following if match[2] is None else match[2]
    return given


def complete(
    config: ConfigDict | dict[str, Any],
    source: str,
    given: Mapping[str, str] | None = None,
    sections: Sections = _RUN,
) -> ConfigDict:
    """The same config with all its fields, locked. A dict becomes one first.

    Args:
      source: its file, for messages.
      given: fields that flags will set. Options of the loss are those of an objective among them.
      sections: dataclasses of options beside those of a stage.

    Raises:
      ValueError: the file states a field that does not exist, or an option that the objective does not take.
    """
    config, given = config if isinstance(config, ConfigDict) else ConfigDict(config), given or {}
    known = [name for stage in ("", *(f"{name}." for name in EARLIER)) for name, _ in walk(StageConfig, stage)]
    for section, options in sections.items():
        known += [section, *(name for name, _ in walk(options, f"{section}."))]
    known += EARLIER
    for path in _paths(config):
        if path not in known and "loss." not in path:
            raise ValueError(f"{source}: {unknown_option(f'config.{path}', [f'config.{name}' for name in known])}")
    of_folder = all(config.get("model", {}).get(size) is None for size in _SIZES)
    with config.unlocked():
        _fill(config, StageConfig, lambda path, field: None if of_folder and _is_of_folder(path) else _default(field))
        if objective := given.get("objective", config.objective):
            found = find_objective(objective)
            if isinstance(found, Sum) and config.objective in found.terms:
                config.loss = ConfigDict({config.objective: config.loss})  # what the file says of its own stays with it
            takes = found.options
            if other := [name for name in config.loss if name not in takes]:
                reason = f"{source} states config.loss.{other[0]}, but {objective} takes {', '.join(takes) or 'none'}"
                advice = ": give the objective behind the colon, if the file takes it there"
                raise ValueError(reason + advice if "objective" in given else reason)
            _fill_loss(config.loss, takes, lambda value: value)
        for name, trained in EARLIER.items():
            _fill_earlier(config, name, given.get(f"{name}.objective", trained))
        for section, options in sections.items():
            if section not in config:
                config[section] = ConfigDict()
            _fill(config[section], options, lambda path, field: _default(field))
    return config.lock()


_SIZES = [field.name for field in options_of(ModelConfig) if field.default is REQUIRED]


def _is_of_folder(path: str) -> bool:
    return path.startswith("model.") or path == "data.tokenizer"


def _default(field: Option) -> Any:
    return None if field.default is REQUIRED else field.default


def _fill(place: ConfigDict, cls: type, default: Callable[[str, Option], Any], path: str = "") -> None:
    """Gives every field of a dataclass that is not there a default; None becomes a placeholder of the field's type."""
    for field in options_of(cls):
        name = field.name
        value = place[name] if name in place else None
        section = dataclasses.is_dataclass(field.kind)
        if section or field.kind is Mapping:
            if value is None:
                _put(place, name, ConfigDict(), ConfigDict)
            if section:
                _fill(place[name], field.kind, default, f"{path}{name}.")
        elif value is None:
            _put(place, name, default(path + name, field), field.kind)
        elif field.kind is float and type(value) is int:
            _put(place, name, float(value), float)


def _put(place: ConfigDict, name: str, value: Any, kind: type) -> None:
    if name in place:
        del place[name]  # what is there fixes the type
    place[name] = placeholder(kind) if value is None else value


def _fill_loss(loss: ConfigDict, options: Mapping[str, Any], default: Callable[[Any], Any]) -> None:
    for name, value in options.items():
        if isinstance(value, Mapping):  # a term of a sum
            if name not in loss:
                loss[name] = ConfigDict()
            _fill_loss(loss[name], value, default)
        elif name not in loss or loss[name] is None:
            _put(loss, name, default(value), type(value))


def _fill_earlier(config: ConfigDict, name: str, objective: str) -> None:
    if name not in config or config[name] is None:
        _put(config, name, ConfigDict(), ConfigDict)
    stage = config[name]
    own = set(_OWN) & set(stated(stage.to_dict()))
    is_own = lambda path: path.partition(".")[0] in own and path not in _SHARED
    _fill(stage, StageConfig, lambda path, field: _default(field) if is_own(path) else None)
    _fill_loss(stage.loss, find_objective(stage.objective or objective).options, lambda value: None)


def _paths(config: ConfigDict, path: str = "") -> Iterator[str]:
    for name, value in config.items():
        yield path + name
        if isinstance(value, ConfigDict):
            yield from _paths(value, f"{path}{name}.")


def _check_fields(config: ConfigDict, given: Mapping[str, str]) -> None:
    """Raises ValueError for a flag of a field that a complete config lacks."""
    known = list(_paths(config))
    for path in given:
        if path in known:
            continue
        if path.startswith("loss."):
            find_objective(given.get("objective", config.objective), **{path.removeprefix("loss."): None})
        elsewhere = hint(path.rpartition(".")[2])
        if elsewhere and not any(name.endswith(f".{path}") for name in known):
            raise ValueError(f"config.{path} is not an option{elsewhere}")
        # A stage before has the same fields: they are only meant where it is named.
        own = [name for name in known if name.partition(".")[0] not in EARLIER or path.partition(".")[0] in EARLIER]
        raise ValueError(unknown_option(f"config.{path}", [f"config.{name}" for name in own]))


def help_text(config: ConfigDict | None = None, source: str = "", sections: Sections = _RUN) -> str:
    """All fields with their values, ranges and meanings, a line each.

    Args:
      config: whose values are shown; None: the defaults.
      source: the file it is from.
      sections: beside those of a stage.
    """
    whose = f"in {source}" if config is not None else "by default"
    lines = [
        "A file with get_config(argument), as in configs/, and its argument behind a colon. Each field below is a "
        f"flag, --config.FIELD=VALUE. Values are those {whose}; docs/config.md has the same as tables.",
        "",
    ]
    beside = itertools.chain(*(walk(options, f"{section}.") for section, options in sections.items()))
    for path, field in (*walk(StageConfig), *beside):
        if dataclasses.is_dataclass(field.kind):
            continue
        if field.kind is Mapping:
            for name in () if config is None else _paths(config[path]):
                value = config_path.get_value(f"{path}.{name}", config)
                if not isinstance(value, ConfigDict):
                    lines.append(f"{path}.{name}={value!r}: of {config.objective}, see docs/objectives.md")
            continue
        value = field.default if config is None else config_path.get_value(path, config)
        shown = "" if value is REQUIRED else f"={value!r}"
        lines.append(f"{path}{shown}{f' ({field.range})' if str(field.range) else ''}: {field.meaning}")
    lines += [f"{name}.FIELD: the same of the {name.upper()} stage before; None: as in the run" for name in EARLIER]
    return "\n".join(lines)
