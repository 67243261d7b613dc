"""Hydra's and OmegaConf's errors in netkin's words: one line, with what may have been meant."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationToMissingValueError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from experiments.cli import sweep
from netkin.errors import UserError, and_more, near

CONF = sweep.ROOT / "conf"
FREE = ("opt_args", "sched_args", "augmentation", "model_args", "adversarial", "kwargs")
"""Mappings that are passed on, to which anything can be added."""


def refuse_no_options(overrides: Sequence[str]) -> None:
    """Raises UserError for a number, a truth value or null as the option of a group: subset=10."""
    for text in overrides:
        try:
            override = OverridesParser.create().parse_override(text)
        except (HydraException, ValueError):
            continue
        group, value = override.key_or_group, override.value()
        values = value.list if isinstance(value, ChoiceSweep) else [value]
        if text == "similarity=null":  # which is its default
            continue
        if (CONF / group).is_dir() and any(
            isinstance(v, int | float | dict | None) for v in values
        ):
            raise UserError(
                f"{text}: {group} must be one of {', '.join(options(group))}; settings of it are "
                f"{group}.NAME=VALUE"
            )


def explained(error: BaseException, script: str, overrides: Sequence[str]) -> str | None:
    """An error of a composed config in one line; None for one that is not a user's slip.

    Args:
        error: of Hydra or OmegaConf, causes last.
        script: evaluate or train.
        overrides: of the command.
    """
    match error:
        case MissingMandatoryValue() | InterpolationToMissingValueError():
            found = re.search(r"Missing mandatory value: ([\w.]+\.\w+)", str(error))
            return missing(found[1] if found else str(error.full_key), script, overrides)
        case ConfigKeyError() | ConfigAttributeError() if "not in struct" in str(error):
            return unknown(str(error.full_key), script, overrides)
        case ConfigCompositionException() if found := re.match(
            r"Could not override '(\w+)'", str(error)
        ):
            return unknown(found[1], script, overrides)
        case MissingConfigException():
            found = re.search(r"Could not find '([\w/@.]+)/([^/']*)'", str(error))
            return no_option(found[1], found[2]) if found else None
        case OverrideParseException():
            return (
                f"{error.override} cannot be read as KEY=VALUE: check its brackets and commas, and "
                "write a value with spaces or special characters in quotes within quotes, such as "
                "'dataset.name=\"my birds\"'"
            )
    return None


def options(group: str) -> list[str]:
    """The options of a group of the config."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def no_option(group: str, option: str) -> str:
    """Says that a group has no such option."""
    known = options(group)
    return f"{group}={option}: no such option{near(option, known)} ({group}: {', '.join(known)})"


def unknown(key: str, script: str, overrides: Sequence[str]) -> str:
    """Says that there is no such setting, with near ones, or which experiment has it."""
    config = composed(script, [text for text in overrides if not names(text, key)])
    known = [*settings(config), *(group.name for group in CONF.iterdir() if group.is_dir())]
    parent, _, leaf = key.rpartition(".")
    same = [name for name in known if "." in name and name.split(".")[-1] == leaf]
    hint = f"; did you mean {and_more(same, 3)}?" if same else near(key, known, 2)
    experiments = sorted((CONF / "experiment").glob("*.yaml"))
    if having := [file.stem for file in experiments if key in OmegaConf.load(file)]:
        hint = f"; it is one of experiment={', '.join(having)}{hint}"
    if parent.split(".")[-1] in FREE:
        hint += f"; to add it, type +{key}=VALUE"
    return f"there is no setting {key}{hint or f' (see python {script}.py --help)'}"


def no_group(config: DictConfig, script: str) -> str | None:
    """Says that a value stands where settings should be: store=foo; None where that is not so."""
    usual = composed(script, [f"experiment={config.experiment.name}"])
    for key in usual:
        if isinstance(usual[key], DictConfig) and not isinstance(config.get(key), DictConfig):
            return (
                f"{key}={config.get(key)}: {key} holds settings, such as "
                f"{key}.{next(iter(usual[key]), 'NAME')}=VALUE"
            )
    return None


def missing(key: str, script: str, overrides: Sequence[str]) -> str:
    """Says which settings have no default, with the comments that conf/ has on them."""
    group = key.rpartition(".")[0]
    config = composed(script, overrides)
    section = OmegaConf.select(config, group) if group else config
    plain: Any = OmegaConf.to_container(section, resolve=False) if section is not None else {}
    prefix = f"{group}." if group else ""
    needed = [f"{prefix}{name}" for name, value in plain.items() if value == "???"]
    return "; ".join(
        f"{name} has no default: type {name}=VALUE{comment(name, overrides)}"
        for name in needed or [key]
    )


def comment(key: str, overrides: Sequence[str]) -> str:
    """The comment beside a setting without a default, in brackets; "" without one."""
    leaf = re.escape(key.split(".")[-1])
    files = sorted(CONF.rglob("*.yaml"))
    for file in sorted(files, key=lambda file: f"{file.parent.name}={file.stem}" not in overrides):
        line = rf"^\s*{leaf}: \?\?\?\s*#\s*(.+(?:\n\s+#.+)*)$"
        if found := re.search(line, file.read_text(), re.MULTILINE):
            text = re.sub(r"\s*\n\s*#\s*", " ", found[1])
            return f" ({text.strip().rstrip('.')})"
    return ""


def composed(script: str, given: Sequence[str]) -> DictConfig:
    """The config of a command's arguments; without them where they cannot be composed."""
    GlobalHydra.instance().clear()
    parsed = get_args_parser().parse_args(list(given))
    try:
        return sweep.composed(script, sweep.without_sweeps(parsed.overrides), parsed.config_dir)
    except (HydraException, OmegaConfBaseException, ValueError):
        return sweep.composed(script, [])


def names(override: str, key: str) -> bool:
    """Whether an override is of a key or of settings in it."""
    own = override.lstrip("+~").split("=")[0]
    return own == key or own.startswith(f"{key}.")


def settings(config: Any, path: str = "") -> Iterator[str]:
    """The dotted keys of a config, those of groups included."""
    for key in map(str, config) if isinstance(config, DictConfig) else ():
        name = f"{path}{key}"
        yield name
        if not OmegaConf.is_missing(config, key) and not OmegaConf.is_interpolation(config, key):
            yield from settings(config[key], f"{name}.")
