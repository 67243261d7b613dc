"""The rules of the code: sizes, docstrings, which part imports which, imports without effects."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

FILES = [p for part in ("src", "experiments") for p in sorted((ROOT / part).rglob("*.py"))]
LONGEST_FILE, LONGEST_FUNCTION = 350, 60
"""In lines."""
LAYERS = [
    {"api"},
    {"pipeline"},
    {"passes"},
    {"report", "training"},
    {"transfer", "tracking"},
    {"zoo", "analysis"},
    {"store", "similarity"},
    {"attacks", "data", "jobs"},
    {"errors"},
]
"""The parts of netkin, from the top: each imports those below its layer only."""
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
import netkin.training.data, netkin.zoo.published
after = others()
changed = [place for place, value in before.items() if after.get(place) != value]
assert not changed, changed
assert settings() == defaults
"""

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def where(path: Path, node: Definition) -> str:
    return f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"


def public(body: list[ast.stmt]) -> Iterator[Definition]:
    """The public functions and classes of a module, with the public methods of the classes."""
    for node in body:
        if isinstance(node, Definition) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from public(node.body)


def is_overload(node: Definition) -> bool:
    return any(isinstance(d, ast.Name) and d.id == "overload" for d in node.decorator_list)


def imported(path: Path) -> Iterator[str]:
    """The modules that a file imports anywhere, with the names that it takes from them."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_no_file_is_long() -> None:
    lengths = {p.relative_to(ROOT): len(p.read_text().splitlines()) for p in FILES}
    assert {path: n for path, n in lengths.items() if n > LONGEST_FILE} == {}


def test_no_function_is_long() -> None:
    lengths = {
        where(path, node): node.end_lineno - node.lineno + 1
        for path in FILES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno
    }
    assert {name: n for name, n in lengths.items() if n > LONGEST_FUNCTION} == {}


def test_no_path_is_read_as_a_pattern() -> None:
    """Polars takes [, * and ? in a path for a pattern unless told otherwise."""
    patterns = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in FILES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("pl.read_csv", "pl.read_parquet", "pl.scan_parquet")
        and "glob" not in {keyword.arg for keyword in node.keywords}
    ]
    assert patterns == []


def test_what_is_public_has_a_docstring() -> None:
    assert [p.relative_to(ROOT) for p in FILES if not ast.get_docstring(tree(p))] == []
    assert [
        where(path, node)
        for path in FILES
        for node in public(tree(path).body)
        if not ast.get_docstring(node) and not is_overload(node)
    ] == []


def test_the_parts_of_the_library_import_downwards() -> None:
    level = {part: depth for depth, parts in enumerate(LAYERS) for part in parts}
    wrong = []
    for path in sorted((ROOT / "src" / "netkin").rglob("*.py")):
        part = path.relative_to(ROOT / "src" / "netkin").with_suffix("").parts[0]
        if part == "__init__":
            continue
        assert part in level, f"{part} has no layer: see LAYERS"
        for name in imported(path):
            other = name.split(".")[1] if name.startswith("netkin.") else part
            if other != part and level.get(other, -1) <= level[part]:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert wrong == []


def test_the_library_is_independent_of_the_commands() -> None:
    foreign = ("hydra", "omegaconf", "experiments")
    files = sorted((ROOT / "src").rglob("*.py"))
    assert [
        (str(p), name) for p in files for name in imported(p) if name.split(".")[0] in foreign
    ] == []


def test_folders_of_experiments_import_only_common() -> None:
    wrong = []
    for path in sorted((ROOT / "experiments").rglob("*.py")):
        folder = path.relative_to(ROOT / "experiments").parts[0]
        for name in imported(path):
            parts = name.split(".")
            if parts[0] == "experiments" and parts[1] not in ("common", folder):
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert wrong == []


@pytest.mark.slow
def test_imports_change_no_other_library() -> None:
    command = [sys.executable, "-c", IMPORTS_CHANGE_NOTHING]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
