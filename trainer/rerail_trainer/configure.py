"""From a command line and a TOML file to one checked Config. Later words win: preset, file, then flags.

Open weights (run.init_from) bring the model section with them, instead of the preset's.
"""

import difflib
import os
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from rerail_api.contract import Env

from .commands import overview
from .config import Config, check
from .failures import BadConfig
from .presets import PRESETS
from .weights.declared import declared_model, model_with

USAGE = """usage: python -m rerail_trainer [COMMAND] [WORD ...]

commands; each tells more with --help:
{commands}

train [--preset NAME] [--config FILE.toml] [--section.key=value ...]:
  --preset NAME            start from one of: {presets}
  --config FILE.toml       then read this file: one table per section
  --section.key=value      then set single keys
  --show-config            print the resulting configuration as JSON and end

settings and their defaults:
{settings}"""


@dataclass(frozen=True)
class CommandLine:
    """What the words ask for: a configuration, and whether only to show it or the usage."""

    config: Config
    show_config: bool = False
    show_usage: bool = False


def read_command_line(words: Sequence[str]) -> CommandLine:
    """Raises BadConfig that names the word, and the nearest known one where there is one."""
    preset, file, settings = "default", "", list[tuple[str, str]]()
    show_config = show_usage = False
    queue = list(words)
    while queue:
        word = queue.pop(0)
        name, given, value = word.partition("=")
        if name in ("--help", "-h"):
            show_usage = True
        elif name == "--show-config":
            show_config = True
        elif name.startswith("--") and len(name) > 2:
            if not given and not queue:
                raise BadConfig(f"{name} needs a value: {name}=VALUE")
            value = value if given else queue.pop(0)
            if name == "--preset":
                preset = value
            elif name == "--config":
                file = value
            else:
                settings.append((name[2:], value))
        else:
            raise BadConfig(f"{word!r} is not understood; settings are written --section.key=value")
    chosen: list[tuple[str, object]] = [*_file_settings(file), *settings]
    config = _with_open_weights(_with_settings(_preset(preset), chosen), chosen)
    check(config)
    return CommandLine(config, show_config, show_usage)


def usage() -> str:
    """The help text, with every setting and its default."""
    lines = [
        f"  --{section.name}.{key.name}={getattr(getattr(Config(), section.name), key.name)}"
        for section in fields(Config)
        for key in fields(getattr(Config(), section.name))
    ]
    return USAGE.format(commands=overview(), presets=", ".join(PRESETS), settings="\n".join(lines))


def _preset(name: str) -> Config:
    if name not in PRESETS:
        raise BadConfig(f"unknown preset {name!r}{nearest(name, list(PRESETS))}")
    return PRESETS[name]


def _file_settings(file: str) -> list[tuple[str, object]]:
    if not file:
        return []
    try:
        tree = tomllib.loads(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise BadConfig(f"--config {file}: {error.strerror}") from error
    except ValueError as error:
        raise BadConfig(f"--config {file} is not TOML: {error}") from error
    for section, table in tree.items():
        if not isinstance(table, dict):
            raise BadConfig(f"--config {file}: {section!r} stands outside a table; write it under [section]")
    return [(f"{section}.{key}", value) for section, table in tree.items() for key, value in table.items()]


def _with_settings(config: Config, settings: Iterable[tuple[str, object]]) -> Config:
    for name, value in settings:
        config = _with_value(config, name, value)
    return config


def _with_open_weights(config: Config, chosen: Iterable[tuple[str, object]]) -> Config:
    """With run.init_from the model is that of those weights; words about it may choose what is free."""
    path = config.run.init_from
    if not path:
        return config
    named = {name.removeprefix("model.") for name, _ in chosen if name.startswith("model.")}
    checkpoints = config.checkpoint.dir or os.environ.get(Env.CHECKPOINT_DIR, "")
    return replace(config, model=model_with(declared_model(path, checkpoints), config.model, named, path))


def _with_value(config: Config, name: str, value: object) -> Config:
    section, _, key = name.partition(".")
    known = [f"{s.name}.{k.name}" for s in fields(Config) for k in fields(getattr(config, s.name))]
    if name not in known:
        raise BadConfig(f"unknown setting {name!r}{nearest(name, known)}")
    group = getattr(config, section)
    parsed = _parsed(name, get_type_hints(type(group))[key], value)
    return replace(config, **{section: replace(group, **{key: parsed})})


def _parsed(name: str, kind: Any, value: object) -> object:
    if get_origin(kind) is Literal:
        if value in get_args(kind):
            return value
        raise BadConfig(f"{name}={value} must be one of {', '.join(get_args(kind))}")
    if kind is bool:
        if isinstance(value, bool) or value in ("true", "false"):
            return value in (True, "true")
        raise BadConfig(f"{name}={value} must be true or false")
    if isinstance(value, bool):
        raise BadConfig(f"{name}={value} must be {_spoken(kind)}")
    if name == "data.path" and isinstance(value, dict):
        return ",".join(f"{path}={weight}" for path, weight in value.items())
    if isinstance(value, str) or (kind is float and isinstance(value, int)):
        try:
            # 1_000 reads well in a shell, and int() takes it
            return kind(value)
        except ValueError as error:
            raise BadConfig(f"{name}={value} must be {_spoken(kind)}") from error
    if type(value) is not kind:
        raise BadConfig(f"{name}={value} must be {_spoken(kind)}")
    return value


def _spoken(kind: type) -> str:
    return {int: "a whole number", float: "a number", str: "text"}[kind]


def nearest(name: str, known: list[str]) -> str:
    """The end of a complaint about an unknown name: the nearest known one, or all of them."""
    # The right key in the wrong section is the commonest slip.
    match = [other for other in known if other.split(".")[-1] == name.split(".")[-1]]
    match = match or difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean {match[0]!r}?" if match else f"; known are: {', '.join(known)}"
