"""The rules of the code: which part imports which, docstrings, imports without effects."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.conftest import ROOT

FILES = [p for part in ("src", "experiments") for p in sorted((ROOT / part).rglob("*.py"))]
BELOW = {
    "errors": {"none"},
    "similarity": {"errors"},
    "attacks": {"errors"},
    "analysis": {"data", "errors", "similarity"},
    "report": {"analysis", "data", "errors", "similarity"},
    "components": {"errors", "zoo"},
    "data": {"errors"},
    "zoo": {"data", "errors", "store"},
    "store": {"data", "errors"},
    "jobs": {"errors"},
    "tracking": {"data", "errors", "jobs", "store"},
}
"""What a part of netkin may import beside itself; of the others, anything that makes no circle."""
EXCEPT = {
    "netkin.report.study imports netkin.store.files",  # how all files are written: whole or not
    "netkin.report.study imports netkin.tracking",  # an output's second place, if a run has one
}
EXPERIMENTS = {
    "cli": {"none"},
    "studies": {"cli", "studies"},
    "benchmarks": {"cli", "studies", "benchmarks"},
    "tools": {"cli", "studies", "tools"},
    "train": {"cli", "train"},
}
"""What a folder of experiments may import of the others."""
IMPORTS_CHANGE_NOTHING = """
import sys
import huggingface_hub, timm, timm.data, timm.models, timm.data.auto_augment
from huggingface_hub.utils import are_progress_bars_disabled, logging

def others():
    return {
        (name, key): id(value)
        for name, module in list(sys.modules.items())
        if name.split(".")[0] in ("timm", "huggingface_hub")
        for key, value in list(vars(module).items())
    }

def settings():
    return logging.get_verbosity(), are_progress_bars_disabled()

before, defaults = others(), settings()
import netkin.training.data, netkin.zoo.sources
after = others()
changed = [place for place, value in before.items() if after.get(place) != value]
assert not changed, changed
assert settings() == defaults
"""


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def module(path: Path) -> str:
    """A file's dotted name."""
    top = ROOT / "src" if path.is_relative_to(ROOT / "src") else ROOT
    parts = path.relative_to(top).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module(path): path for path in FILES}


def imported(path: Path) -> Iterator[str]:
    """The modules that a file imports anywhere, with the names that it takes from them.

    Less those for annotations only.
    """
    nodes = [*ast.walk(tree(path))]
    typing = {
        inner
        for node in nodes
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in nodes:
        if node in typing:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def ours(path: Path) -> set[str]:
    """The modules of src and experiments that a file imports."""
    found = set()
    for name in imported(path):
        known = name if name in MODULES else name.rpartition(".")[0]
        if known in MODULES:
            found.add(known)
    return found - {module(path)}


def test_no_path_is_read_as_a_pattern() -> None:
    """Polars takes [, * and ? in a path for a pattern unless told otherwise."""
    patterns = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in FILES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("pl.read_csv", "pl.read_parquet", "pl.scan_parquet")
        and "glob" not in {keyword.arg for keyword in node.keywords}
        and not ast.unparse(node.args[0]).startswith("io.BytesIO(")
    ]
    assert patterns == []


def test_modules_have_docstrings() -> None:
    assert [name for name, path in MODULES.items() if not ast.get_docstring(tree(path))] == []


def test_parts_import_downwards() -> None:
    wrong = []
    for name, path in MODULES.items():
        top, part, *_ = [*name.split("."), ""]
        allowed = (BELOW if top == "netkin" else EXPERIMENTS).get(part)
        for other in ours(path):
            to_top, to_part, *_ = [*other.split("."), ""]
            beside = to_top == top and to_part not in {"", part}
            if to_top == "experiments" != top or (allowed and beside and to_part not in allowed):
                wrong.append(f"{name} imports {other}")
    assert set(wrong) == EXCEPT


def test_no_import_circle() -> None:
    left = {name: ours(path) for name, path in MODULES.items()}
    while free := {name for name, needs in left.items() if not needs & left.keys()}:
        left = {name: needs for name, needs in left.items() if name not in free}
    while unused := {name for name in left if not any(name in needs for needs in left.values())}:
        left = {name: needs for name, needs in left.items() if name not in unused}
    assert left.keys() == set()


def test_every_module_is_used() -> None:
    """By another, by a config of conf/, by a command, or by the name of it or of its function."""
    used = {name for path in FILES for name in ours(path)}
    used |= {
        str(node.value).partition(":")[0]
        for path in FILES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Constant)
    }
    used |= {name for name in MODULES if name.startswith("experiments.benchmarks.")}  # scripts
    texts = [*(ROOT / "conf").rglob("*.yaml"), *ROOT.glob("*.py"), ROOT / "pyproject.toml"]
    named = "\n".join(path.read_text() for path in texts)
    packages = {module(path) for path in FILES if path.name == "__init__.py"}
    unused = [name for name in MODULES if name not in used | packages and name not in named]
    assert unused == []


def test_the_library_is_independent_of_the_commands() -> None:
    foreign = ("hydra", "omegaconf", "experiments")
    files = sorted((ROOT / "src").rglob("*.py"))
    assert [
        (str(p), name) for p in files for name in imported(p) if name.split(".")[0] in foreign
    ] == []


@pytest.mark.slow
def test_imports_change_no_other_library() -> None:
    command = [sys.executable, "-c", IMPORTS_CHANGE_NOTHING]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
