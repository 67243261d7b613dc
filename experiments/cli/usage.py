"""--help of both commands, from the comments of conf/ and config.py."""

import re
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from experiments.cli.config import CONF, GROUPS, Setting, settings
from experiments.cli.mistakes import check_option, options

WIDTH = 80
ABOUT = {
    "evaluate": "How related are image classifiers? evaluate.py crafts adversarial images on each "
    "model, evaluates every other model on them, and writes scores, their intervals, figures and a "
    "page into outputs/<experiment>/<date>. Models without weights are trained first. What the "
    "store has is not computed again.",
    "train": "train.py trains image classifiers, alone or from a teacher, for evaluate.py to "
    "compare. Weights are stored by name: vit_ti@regnety_032 is the student vit_ti of the teacher "
    "regnety_032, and digits/vit_ti@regnety_032 a member of evaluate.py. An interrupted training "
    "continues.",
}
EXPERIMENTS = {  # in the order in which they are of use
    "About models": (
        *("pairwise", "relatives", "clusters", "components", "importance", "within", "compare"),
        *("classes", "landmarks", "novel", "probe", "measures"),
    ),
    "About a choice": ("select", "ensemble", "teachers", "distillation"),
    "About a run": (
        *("plan", "eps", "budget", "precision", "attacks", "craft", "store", "index", "dashboard"),
    ),
    "About training": ("scratch", "distill", "seeds", "hparams"),
}
MORE = """
More
  experiment=NAME --help    what one experiment answers, and its settings
  group=option --help       the settings of an option, such as attack=pgd
  model=NAME, model=[A,B]   any timm names; short for model.members=[...]
  -m, --multirun            a run for every combination of values a,b
  --cfg job                 the composed configuration; --info its parts
  --hydra-help              Hydra's own flags"""


def show(script: str, given: Sequence[str]) -> None:
    """Print the help of a script; with group=option among the arguments, of these options alone.

    Hydra's own --help takes three seconds to list its groups. Raises UserError for an option that
    does not exist.
    """
    files = []
    for group, _, option in (text.partition("=") for text in given):
        if option and (CONF / group).is_dir() and option.isidentifier():
            file = CONF / group / f"{option}.yaml"
            if not any(text.startswith("--config-dir") for text in given):
                check_option(group, option)
            files += [file] * file.is_file()
    lines = (line for file in files for line in _option(file, script)) if files else _all(script)
    print("\n".join(lines).rstrip())


def _all(script: str) -> Iterator[str]:
    yield f"usage: python {script}.py [experiment=NAME] [group=option] [name=value] ..."
    yield ""
    yield from textwrap.wrap(ABOUT[script], WIDTH)
    groups, listed = dict(EXPERIMENTS), [n for names in EXPERIMENTS.values() for n in names]
    if others := tuple(name for name in options("experiment") if name not in listed):
        groups["Others"] = others
    own = {title: _script(names[0]) == script for title, names in groups.items()}
    for title in sorted(groups, key=lambda title: not own[title]):
        where = "" if own[title] else f" (python {_script(groups[title][0])}.py)"
        yield from ("", f"{title}: experiment=NAME{where}")
        for name in groups[title]:
            yield from _row(name, _question(CONF / "experiment" / f"{name}.yaml"), 20)
    yield from ("", "Groups and their options")
    for group in (*GROUPS[1:], "similarity"):
        yield from _row(group, ", ".join(options(group)), 20)
    yield from _row("hydra/launcher", ", ".join(["joblib", *options("hydra/launcher")]), 20)
    yield from _settings(settings("", script))
    yield from MORE.splitlines()


def _script(experiment: str) -> str:
    """The script that runs an experiment."""
    file = CONF / "experiment" / f"{experiment}.yaml"
    return yaml.safe_load(file.read_text())["experiment"].get("script") or "evaluate"


def _question(file: Path) -> str:
    """The first sentence of an option's comment, without references and commands."""
    lines = [line[1:].strip() for line in file.read_text().splitlines() if line[:1] == "#"]
    text = " ".join(line for line in lines if not line.startswith(("python ", "@package")))
    text = re.sub(r" \((?:Sec|App|Tab|Fig|Eq)[^)]*\)", "", text.strip())
    return re.split(r"(?<=[?.])\s+(?=[A-Z(])", text)[0]


def _option(file: Path, script: str) -> Iterator[str]:
    """An option's file as it is, which begins with its commands and what it is for."""
    yield f"{file.parent.name}={file.stem}"
    yield from (line for line in file.read_text().splitlines() if "@package" not in line)
    if file.parent.name == "experiment":
        common, own = settings("", script), settings(file.stem, script)
        yield from _settings({key: own[key] for key in own if key not in common})
    yield ""


def _settings(own: dict[str, Setting]) -> Iterator[str]:
    yield from ("", "Settings and their defaults") if own else ()
    for key, setting in own.items():
        text = yaml.safe_dump(setting.default, default_flow_style=True, width=1000)
        value = text.removesuffix("...\n").strip().replace("'???'", "???")
        expected = setting.expected if " or " in setting.expected and setting.type is str else ""
        about = ". ".join(filter(None, [setting.about, expected and f"One of {expected}"]))
        yield from _row(f"{key}: {value}", about, 30)


def _row(name: str, text: str, column: int) -> Iterator[str]:
    """A name and a text beside it, which begins at a column and wraps there."""
    first, indent = f"  {name}", " " * column
    lines = textwrap.wrap(
        text, WIDTH, break_on_hyphens=False, initial_indent=indent, subsequent_indent=indent
    )
    if lines and len(first) < column:
        yield first + lines.pop(0)[len(first) :]
    else:
        yield first
    yield from lines
