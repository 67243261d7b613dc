"""Errors of a command in one line, with the setting or option that may have been meant."""

import re
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationToMissingValueError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    ValidationError,
)

from experiments.cli.config import CONF, EXPERIMENTS, GROUPS, composed, settings
from netkin.errors import (
    DamagedFile,
    OtherContents,
    OtherTraining,
    OutputsError,
    StoreError,
    Unreadable,
    UserError,
    and_more,
    near,
)

ERRORS = (UserError, HydraException, OmegaConfBaseException)
ENDS = (*ERRORS, OSError)
"""What ends a command in one line; an OSError is a folder that cannot be made, or a full disk."""
PASSED_ON = ("opt_args", "sched_args", "augmentation", "model_args", "adversarial", "kwargs")
"""Mappings that are passed on to other libraries, to which anything can be added."""
CHECKED = ("attack", "recipe", "recipes", "subset", "logger", "distillation", "hydra")
"""Groups whose settings are checked by what they are passed to."""
HINTS: dict[type[UserError], str] = {
    OtherTraining: (
        "name=NAME of train.py and {name: NAME, timm: ...} of evaluate.py name a model, "
        "store.dir=PATH a store; resume=never starts an unfinished training again"
    ),
    OtherContents: (
        "{name: NAME, timm: ...} in model.members names a model, store.dir=PATH a store; "
        "`python evaluate.py experiment=store remove=[NAME] confirm=true{store}` removes a model's "
        "results"
    ),
    Unreadable: "dataset.on_error=skip leaves out images that cannot be read",
    DamagedFile: (
        "`python evaluate.py experiment=store remove=damaged confirm=true{store}` removes all that "
        "is damaged"
    ),
    StoreError: "store.dir=PATH names a store",
    OutputsError: "hydra.run.dir=PATH names the run's folder",
}
"""What to type, by the error of the library; {store} is the override of the run's store."""
OUTPUTS = "; if it is the run's folder, choose another with hydra.run.dir=PATH, or make room"


def one_line(error: BaseException, script: str = "evaluate", overrides: Sequence[str] = ()) -> str:
    """The message of one of ENDS on one line; Hydra wraps its own over several, causes last."""
    while isinstance(error.__cause__, (*ERRORS, ValueError)):
        error = error.__cause__
    if line := _explained(error, script, overrides):
        return line
    if isinstance(error, OSError) and not isinstance(error, HydraException):
        return f"{error}{OUTPUTS}"
    line = " ".join(line.strip() for line in str(error).splitlines() if line.strip())
    hint = next((hint for kind, hint in HINTS.items() if isinstance(error, kind)), None)
    stores = [text for text in overrides if text.startswith("store.dir=")]  # the last one holds
    store = f" {shlex.quote(stores[-1])}" if stores else ""
    return f"{line} ({hint.replace('{store}', store)})" if hint else line


def _explained(error: BaseException, script: str, overrides: Sequence[str]) -> str | None:
    """What is wrong with a setting, by an error of Hydra or OmegaConf; None of others."""
    key, text = str(getattr(error, "full_key", None) or ""), str(error)
    experiments = [text[11:] for text in overrides if text.startswith("experiment=")]
    known = settings((experiments or [{"train": "scratch"}.get(script, "pairwise")])[-1], script)
    match error:
        case MissingMandatoryValue() | InterpolationToMissingValueError():
            if found := re.search(r"Missing mandatory value: ([\w.]+\.\w+)", text):
                key = found[1]
            chosen = " ".join(o for o in overrides if o.startswith(("dataset=", "experiment=")))
            more = f"`python {script}.py {chosen} --help` says more" if chosen else ""
            more = known[key].about if key in known else more
            return f"{key} has no default: type {key}=VALUE{f' ({more})' if more else ''}"
        case ValidationError():
            name = key.partition("[")[0]
            typed = [text for text in overrides if _is_of(text, name)]
            got = typed[-1].partition("=")[2] if typed else text.splitlines()[0]
            if name in known:
                return f"{name} must be {known[name].expected}, got {got}"
            if inside := next((other for other in known if other.startswith(f"{name}.")), None):
                return f"{name}={got}: {name} holds settings, such as {inside}=VALUE"
        case ConfigKeyError() | ConfigAttributeError() if key:
            return unknown(key, script, overrides)
        case HydraException() if found := re.match(r"Could not override '([\w.@/]+)'", text):
            return unknown(found[1], script, overrides)
        case MissingConfigException():
            found = re.search(r"Could not find '([\w/@.]+)/([^/']*)'", text)
            return _no_option(found[1], found[2]) if found else None
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


def check_option(group: str, option: str) -> None:
    """Raises UserError for an option that a group does not have."""
    if option not in options(group):
        raise UserError(_no_option(group, option))


def _no_option(group: str, option: str) -> str:
    known = options(group)
    hint = near(option, known) or f" ({group} is one of {', '.join(known)})"
    return f"{group}={option}: no such option{hint}"


def check_additions(overrides: Sequence[str], script: str) -> None:
    """Raises UserError for +KEY=VALUE that nothing would read, and an option that is no text."""
    for text in overrides:
        key, _, value = text.lstrip("+").partition("=")
        if key in GROUPS and re.fullmatch(r"(?i)null|true|false|[\d.]+", value):
            check_option(key, value)  # Hydra raises a ValueError
        parent = key.rpartition(".")[0].split(".")
        if text.startswith("+") and not (
            parent[0] in CHECKED
            or parent[-1] in (*PASSED_ON, "known", "images", "train_images")
            or key.partition("@")[0].partition("/")[0] in (*CHECKED, *GROUPS)
        ):
            raise UserError(unknown(key, script, overrides))


def unknown(key: str, script: str, overrides: Sequence[str]) -> str:
    """A sentence: there is no such setting, with near ones, or which experiment has it."""
    try:
        config = composed(script, [text for text in overrides if not _is_of(text, key)])
    except (HydraException, OmegaConfBaseException, ValueError):
        config = composed(script, [])
    known = [*_keys(config), *GROUPS]
    parent, _, leaf = key.rpartition(".")
    same = [name for name in known if "." in name and name.split(".")[-1] == leaf]
    hint = f"; did you mean {and_more(same, 3)}?" if same else near(key, known, 2)
    having = [
        name for name in EXPERIMENTS if any(_is_of(other, key) for other in settings(name, script))
    ]
    if having and len(having) < len(EXPERIMENTS):
        hint = f"; it is one of experiment={', '.join(having)}{hint}"
    if parent.split(".")[-1] in PASSED_ON:
        hint += f"; to add it, type +{key}=VALUE"
    return f"there is no setting {key}{hint or f' (see python {script}.py --help)'}"


def _is_of(override: str, key: str) -> bool:
    """Whether an override is of a key or of settings in it."""
    own = override.lstrip("+~").partition("=")[0]
    return own == key or own.startswith(f"{key}.")


def _keys(config: Any, path: str = "") -> Iterator[str]:
    """The dotted keys of a config, those of groups included."""
    for key in map(str, config) if isinstance(config, DictConfig) else ():
        yield f"{path}{key}"
        if not OmegaConf.is_missing(config, key) and not OmegaConf.is_interpolation(config, key):
            yield from _keys(config[key], f"{path}{key}.")
