"""What a store holds, which of its files are damaged, and how parts of it are removed.

Only the files are read: no config, model or dataset is needed.
"""

import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from netkin.errors import DamagedFile, UserError, near
from netkin.store.files import digest, read_tensors
from netkin.store.layout import manifest_problem
from netkin.store.lease import Holder, holders, me, sweep
from netkin.store.names import FLOAT32, folder, outcomes_folder
from netkin.store.outcomes import OutcomeStore, contents, read_table

YOUNG = 3600.0
"""Seconds for which a temporary file may belong to a running process of another machine."""


@dataclass(frozen=True)
class Part:
    """A part of a store.

    Attributes:
        path: its file or folder, below the store's root.
        kind: views, clean, adversarial, outcomes, or a folder of the root such as weights.
        member: the model, of outcomes the target; "" where there is none.
        done, total: pieces that are stored, and of the complete part: shards of images, sources
            that a target was evaluated on, files of clean logits. total is 0 where it is unknown.
        size: bytes.
    """

    path: Path
    kind: str
    member: str
    done: int
    total: int
    size: int


@dataclass(frozen=True)
class SubsetFolder:
    """<dataset>/<subset>-<hash> of a store, and its manifest's number and hash of images."""

    path: Path
    images: int
    sha256: str

    @property
    def attacks(self) -> list[Path]:
        """The folders of its attacks."""
        return sorted(p for p in self.path.glob("*-*") if p.is_dir())


def subsets(root: Path) -> list[SubsetFolder]:
    """All subsets of a store. Without a readable manifest only the path of one is known."""
    kinds, found = ("manifest.json", "views", "clean"), []
    for path in sorted({path.parent for kind in kinds for path in root.glob(f"*/*/{kind}")}):
        content = _json(path / "manifest.json")
        found.append(
            SubsetFolder(path, len(content.get("ids", ())), str(content.get("sha256", "")))
        )
    return found


def parts(root: Path) -> list[Part]:
    """Everything that a store holds, in the order of its folders."""
    everything, known = [], subsets(root)
    datasets = {subset.path.parent for subset in known}
    for other in sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")):
        everything += [
            Part(p, other.name, unquote(p.stem), 1, 0, size_of(p))
            for p in sorted(other.glob("*/*"))
            if other not in datasets and (p.is_dir() or p.suffix == ".safetensors")
        ]
    for subset in known:
        everything += _parts_of(subset)
    return everything


def _parts_of(subset: SubsetFolder) -> Iterator[Part]:
    def shards(path: Path, kind: str, member: str = "") -> Part:
        size = identity(path).get("shard_size", 0)
        total = math.ceil(subset.images / size) if size else 0
        return Part(path, kind, member, len(_files(path, "*.safetensors")), total, size_of(path))

    for path in sorted(subset.path.glob("views/*")):
        yield shards(path, "views")
    for path in sorted(subset.path.glob("clean/*")):
        done = (path / "logits.safetensors").is_file()
        yield Part(path, "clean", unquote(path.name), int(done), 1, size_of(path))
    for attack in subset.attacks:
        sources = sorted(attack.glob("adversarial/*"))
        for path in sources:
            yield shards(path, "adversarial", unquote(path.name))
        for path in sorted(p for p in attack.glob("outcomes*/*") if p.is_dir()):
            evaluated: set[str] = set()
            for file in path.glob("[!.]*.parquet"):
                with suppress(DamagedFile):  # which `damage` finds
                    evaluated |= contents(file).parts.keys()
            total, size = len(sources), size_of(path)
            yield Part(path, "outcomes", unquote(path.name), len(evaluated), total, size)


@dataclass(frozen=True)
class Damage:
    """A damaged file, and what to remove so that a run computes it again."""

    path: Path
    problem: str
    remove: Path


def checked(root: Path) -> list[Path]:
    """The files that `damage` checks."""
    names = ("manifest.json", "identity.json", "*.safetensors", "*.parquet")
    return sorted({file for name in names for file in _files(root, f"**/{name}")})


def damage(root: Path, advance: Callable[[int], None]) -> list[Damage]:
    """All damaged files of a store; `advance` is called with 1 after each of `checked`."""
    damages = []
    known = {subset.path: subset for subset in subsets(root)}
    for file in checked(root):
        if problem := _problem(root, file, known):
            # The identity of these entries is lost with the file; others' is in the folder's name.
            entire = file.name == "identity.json" and file.parents[1].name in (
                "adversarial",
                "clean",
            )
            damages.append(Damage(file, problem, file.parent if entire else file))
        advance(1)
    return damages


def _problem(root: Path, file: Path, known: Mapping[Path, SubsetFolder]) -> str | None:
    subset = next((known[path] for path in file.parents if path in known), None)
    if file.name == "manifest.json":
        fits = str(_json(file).get("sha256", "")).startswith(file.parent.name.rpartition("-")[2])
        other = None if fits else "it lists other images than its folder is for"
        return manifest_problem(file) or other
    if file.name == "identity.json":
        return _identity_problem(file, subset)
    try:
        if file.suffix == ".parquet":
            return _outcome_problem(file, subset)
        ours = subset is not None or file.relative_to(root).parts[0] in ("weights", "training")
        read_tensors(file, ours)
    except DamagedFile as error:
        return error.problem
    return None


def _identity_problem(file: Path, subset: SubsetFolder | None) -> str | None:
    """What is wrong with an entry's identity: by its folder's name, and the folders around it."""
    content, entry, above = _json(file), file.parent, file.parents[1]
    if not content:
        return "it cannot be read"
    if subset is None:
        return None
    if subset.sha256 and content.get("subset_sha256") != subset.sha256:
        return "it is of another subset of images"
    if above.name == "views":
        return None if digest(content)[:12] == entry.name else "it does not fit its folder's name"
    if "attack" in content and above == subset.path:
        fits = digest(content["attack"])[:8] == entry.name.rpartition("-")[2]
        return None if fits else "its attack does not fit its folder's name"
    if isinstance(transfer := content.get("transfer"), dict):
        fits = outcomes_folder(str(transfer.get("precision", FLOAT32))) == entry.name
        return None if fits else "its precision does not fit its folder's name"
    if above.name == "adversarial":
        attack, clean = identity(above.parent), identity(subset.path / "clean" / entry.name)
        if attack and content.get("attack") != attack.get("attack"):
            return "it is of another attack than its folder"
        if clean and content.get("model") != clean.get("model"):
            return "it is of another model than the clean predictions of that name"
    return None


def _outcome_problem(file: Path, subset: SubsetFolder | None) -> str | None:
    """What is wrong with a table of outcomes: by its contents, and by the models that made it.

    Raises DamagedFile where its checksum does not fit.
    """
    rows, of = read_table(file), contents(file)
    if not set(rows["source"]) <= of.parts.keys() or not set(rows["target"]) <= {of.target}:
        return "it has rows of other models than it lists"
    attack = file.parents[2]
    model = identity(attack.parent / "clean" / file.parent.name).get("model")
    if model and of.model != digest(model):
        return f"it was made by another model than {of.target} is now"
    for source, part in of.parts.items():
        images = attack / "adversarial" / folder(source) / "identity.json"
        readable = images.is_file() and _identity_problem(images, subset) is None
        if readable and part.made_by != digest(_json(images)):
            return f"it was made by another model than {source} is now"
    return None


def leftovers(root: Path) -> list[Path]:
    """Half-written files that no running process can still be writing, and leases of processes of
    other machines that have not been seen for as long."""
    sweep(root)
    files = [*_files(root, "**/.*.tmp"), *_files(root, "**/.*.new")]
    files += [file for holder, lives, file in holders(root) if lives or holder is None]
    now = _now(root)
    return [file for file in files if _age(file, now) > YOUNG]


def _now(root: Path) -> float:
    """The time by the clock of the store's file system, or this machine's if it is read-only."""
    clock = root / f".clock-{me().token}.tmp"
    try:
        clock.touch()
        return clock.stat().st_mtime
    except OSError:
        return time.time()
    finally:
        with suppress(OSError):
            clock.unlink()


def _age(file: Path, now: float) -> float:
    """Seconds since a file was written or touched; 0 for one that is gone. A process touches its
    leases every few seconds, so that one of a great age is of a process that has ended."""
    try:
        return now - file.stat().st_mtime
    except OSError:
        return 0.0


def selected(root: Path, names: Sequence[str]) -> list[Path]:
    """The paths of names: paths below the root, or members (everything but their weights).

    Raises UserError for a name of nothing in the store.
    """
    chosen: dict[Path, None] = {}
    for name in names:
        path = (root / name).resolve()
        if name and path != root and root in path.parents and path.exists():
            chosen[path] = None
        elif member := [path for subset in subsets(root) for path in _of_member(subset, name)]:
            chosen |= dict.fromkeys(member)
        else:
            members = {part.member for part in parts(root) if part.member}
            raise UserError(
                f"the store {root} holds nothing named {name!r}, which may be damaged, leftovers, "
                f"a member, or a path below the store{near(name, members)}"
            )
    return list(chosen)


def _of_member(subset: SubsetFolder, member: str) -> Iterator[Path]:
    """The folders of a member, and its pairs with other targets: paths that stand for these."""
    name = folder(member)
    tables = [table for attack in subset.attacks for table in attack.glob("outcomes*")]
    folders = [subset.path / "clean", *(a / "adversarial" for a in subset.attacks), *tables]
    yield from (path / name for path in folders if (path / name).exists())
    for table in map(OutcomeStore, tables):
        for target in sorted(unquote(path.name) for path in table.path.glob("*/")):
            if target != member and any(member in contents(f).parts for f in table.files(target)):
                yield table.pair(member, target)


def remove(root: Path, paths: Sequence[Path]) -> None:
    """Remove files, folders and pairs. Raises UserError while a running process writes to one."""
    now = _now(root)
    for holder, lives, file in holders(root):
        if holder is not None and lives and _age(file, now) <= YOUNG:
            product = root / holder.product
            for path in paths:
                if path == product or path in product.parents:
                    raise UserError(f"{path} is being made by {_process(holder)}; wait, or stop it")
    for path in paths:
        try:
            if path.is_dir():
                shutil.rmtree(path)
            elif path.parents[1].name.startswith("outcomes") and not path.exists():
                table = OutcomeStore(path.parents[1])
                table.remove(unquote(path.name), unquote(path.parent.name))
            else:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"{path} cannot be removed ({error.strerror})") from None


def at_work(root: Path) -> list[tuple[str, str, float | None]]:
    """Which processes are working on a store: (process in words, product, seconds since it was
    seen where that is long; such a one has ended, most likely)."""
    now = _now(root)
    return [
        (_process(holder), holder.product, age if (age := _age(file, now)) > YOUNG else None)
        for holder, lives, file in holders(root)
        if holder is not None and lives
    ]


def _process(holder: Holder) -> str:
    return f"process {holder.pid} on {holder.host}"


def size_of(*paths: Path) -> int:
    """Bytes of files and folders."""
    files = [f for path in paths for f in ([path] if path.is_file() else path.rglob("*"))]
    return sum(file.stat().st_size for file in files if file.is_file())


def _files(root: Path, pattern: str) -> list[Path]:
    return [p for p in root.glob(pattern) if p.is_file() and ("/." in pattern or p.name[0] != ".")]


def identity(entry: Path) -> dict[str, Any]:
    """The identity in an entry's folder; empty where it cannot be read."""
    return _json(entry / "identity.json")


def _json(file: Path) -> dict[str, Any]:
    """A JSON mapping, or an empty one where the file holds none."""
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
