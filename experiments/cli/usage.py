"""--help of evaluate.py and train.py, from the comments and values of conf/, within 80 columns."""

import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from experiments.cli.mistakes import CONF
from netkin.errors import UserError, near

WIDTH, INDENT = 80, "  "
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
EXAMPLES = {
    "evaluate": (
        "python evaluate.py",
        "python evaluate.py model=[test_resnet,test_vit] attack.eps=16/255",
        "python evaluate.py -m attack.eps=8/255,16/255,32/255",
    ),
    "train": (
        "python train.py experiment=distill teacher=regnety_032",
        "python train.py model=vit_ti seed=1 recipe.epochs=40",
        "python train.py -m experiment=distill teacher=test_resnet,test_vit",
    ),
}
FLAGS = (
    ("experiment=NAME --help", "what one experiment answers, and its values"),
    ("group=option --help", "the values of an option, such as attack=pgd"),
    ("model=NAME, model=[A,B]", "any timm names; short for model.members=[...]"),
    ("-m, --multirun", "a run for every combination of values a,b"),
    ("--cfg job", "the composed configuration; --info its parts"),
    ("--hydra-help", "Hydra's own flags"),
)


def asked(given: Sequence[str]) -> bool:
    """Whether a command's arguments ask for help."""
    return bool({"-h", "--help"} & {*given})


def show(script: str, given: Sequence[str]) -> None:
    """Print the help of a script; with group=option among the arguments, of these options alone."""
    chosen = dict(text.split("=", 1) for text in given if re.fullmatch(r"[\w@.]+=\w+", text))
    options = []
    for group, option in chosen.items():
        file = CONF / group / f"{option}.yaml"
        if file.is_file():
            options.append(file)
        elif group in ("experiment", "attack", "dataset", "logger"):
            known = sorted(path.stem for path in file.parent.glob("*.yaml"))
            raise UserError(f"there is no {group}={option}{near(option, known)}; see --help")
    lines = _general(script)
    if options:
        lines = (line for file in options for line in (*_option(file), ""))
    sys.stdout.write("\n".join(lines).rstrip() + "\n")


def _general(script: str) -> Iterator[str]:
    other = "train" if script == "evaluate" else "evaluate"
    yield f"usage: python {script}.py [experiment=NAME] [group=option] [name=value] ..."
    yield ""
    yield from textwrap.wrap(ABOUT[script], WIDTH)
    for title, name in (("Experiments", script), (f"Experiments of {other}.py", other)):
        yield from ("", title)
        for file in sorted(CONF.glob("experiment/*.yaml")):
            if _script(file) == name:
                yield from _row(file.stem, _question(file), 20)
    yield from ("", "Groups and their options")
    for group in sorted(path for path in CONF.iterdir() if path.is_dir()):
        if group.name not in ("experiment", "hydra"):
            names = sorted(file.stem for file in group.glob("*.yaml"))
            yield from _row(group.name, ", ".join(names), 20)
    launchers = sorted(file.stem for file in (CONF / "hydra" / "launcher").glob("*.yaml"))
    yield from _row("hydra/launcher", ", ".join(["joblib", *launchers]), 20)
    yield from ("", "Values and their defaults")
    text = (CONF / f"{script}.yaml").read_text()
    own = text[text.index("\n\n") : text.index("\nhydra:")]
    yield from _values(own)
    yield from ("", "Examples", *(INDENT + line for line in EXAMPLES[script]), "", "More")
    for flag, text in FLAGS:
        yield from _row(flag, text, 28)


def _script(file: Path) -> str:
    content = yaml.safe_load(file.read_text())
    return content["experiment"].get("script", "evaluate")


def _header(file: Path) -> tuple[list[str], list[str]]:
    """The commands at the top of an option's file, and what its comment says."""
    commands, prose = [], []
    for line in file.read_text().splitlines():
        if not line.startswith("#"):
            break
        words = line.removeprefix("#").strip()
        if words.startswith("python "):
            commands.append(re.sub(r"\s{3,}", "   # ", words))
        elif words and not words.startswith("@package"):
            prose.append(words)
    return commands, prose


def _question(file: Path) -> str:
    """The first sentence of a comment."""
    text = re.sub(r" \((?:Sec|App|Tab|Fig|Eq)[^)]*\)", "", " ".join(_header(file)[1]))
    return re.split(r"(?<=[?.])\s+(?=[A-Z(])", text)[0]


def _option(file: Path) -> Iterator[str]:
    commands, prose = _header(file)
    yield f"{file.parent.name}={file.stem}"
    for paragraph in textwrap.wrap(" ".join(prose), WIDTH - 2):
        yield INDENT + paragraph
    if commands:
        yield from ("", "Commands")
        for command in commands:
            lines = textwrap.wrap(command, WIDTH - 6, break_on_hyphens=False)
            yield " \\\n    ".join([INDENT + lines[0], *lines[1:]])
    text = "\n".join(line for line in file.read_text().splitlines() if line[:1] != "#")
    values = re.sub(r"(?m)^experiment:\n(?: .*\n)+", "", f"{text}\n")
    if values.strip():
        yield from ("", "Values and their defaults")
        yield from _values(values)


def _values(text: str) -> Iterator[str]:
    """Lines of YAML, with comments at one column and wrapped."""
    entries: list[tuple[str, list[str]]] = []
    for line in text.splitlines():
        value, _, comment = line.partition(" #")
        if line.strip().startswith("#"):
            value, comment = "", line.strip().removeprefix("#")
        if value.strip() or not entries:
            entries.append((value.rstrip(), []))
        if comment.strip():
            entries[-1][1].append(comment.strip())
    for value, comments in entries:
        if value or comments:
            yield from _row(value, " ".join(comments), 26)


def _row(name: str, text: str, column: int) -> Iterator[str]:
    """A name and a text beside it, which begins at a column and wraps there."""
    first = f"{INDENT}{name}"
    lines = textwrap.wrap(text, WIDTH - column, break_on_hyphens=False) or [""]
    if len(first) >= column and text:
        yield first
        first = ""
    for line in lines:
        yield f"{first:<{column}}{line}".rstrip()
        first = ""
