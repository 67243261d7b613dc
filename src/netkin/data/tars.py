"""Images inside tar files, indexed once and then read at random."""

import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from netkin.data.classes import natural_key, numbered
from netkin.data.files import EXTENSIONS, Entry, Listing, Slice, litter
from netkin.data.images import Labelled
from netkin.data.labels import ALL_SPLITS, SPLITS
from netkin.errors import UserError

LINK = "link within the archive (make it with tar --dereference --hard-dereference)"


@dataclass(frozen=True)
class Member:
    """A file of an archive.

    Attributes:
        path: in the archive, an outer archive's name before it; what ids are made of.
        folders: that it lies in. Of files that lie in no folder, the inner archive's name: a class
            may be an archive of its own.
        source: where its bytes are.
    """

    path: str
    folders: tuple[str, ...]
    source: Slice


def is_tar(root: str) -> bool:
    """Whether a path is a tar file, or a folder of tar files.

    A folder with other folders in it has its images there, whatever archives lie beside them.
    """
    path = Path(root).expanduser()
    if path.suffix == ".tar":
        return True
    if not path.is_dir():
        return False
    entries = [entry for entry in path.iterdir() if not entry.name.startswith(".")]
    return any(e.suffix == ".tar" for e in entries) and not any(e.is_dir() for e in entries)


def list_tar(root: Path, split: str) -> Listing:
    """The files of one split of a tar file, of a folder of tar files, or of tar files in a tar.

    A folder's <split>.tar, or what lies below <split>/ in a tar, is that split; without such
    names everything is what is compared on, and there is nothing to train on. Paths start below
    the split's folder, and without folders that all files lie in; ids are whole paths.

    Raises UserError when the archive cannot be read or does not have the split.
    """
    names = SPLITS.get(split, (split,))
    own = next((root / f"{n}.tar" for n in names if (root / f"{n}.tar").is_file()), None)
    left_out: Counter[str] = Counter()
    members = list(_members(own or root, left_out))
    placed = [(member, member.folders) for member in members]
    if own is None:
        placed = _of_split(root, members, split, left_out)
    shared = _shared([folders for member, folders in placed if _is_image(member)])
    entries = []
    for member, folders in sorted(placed, key=lambda pair: natural_key(pair[0].path)):
        inner = folders[shared:] if len(folders) > shared else ()
        path = "/".join([*inner, PurePosixPath(member.path).name])
        entries.append(Entry(path, member.path, member.source))
    tops = {e.path.partition("/")[0] for e in entries if e.is_image and "/" in e.path}
    return Listing(str(own or root), entries, sorted(tops), left_out)


def _is_image(member: Member) -> bool:
    return member.path.lower().endswith(EXTENSIONS)


def _of_split(
    root: Path, members: list[Member], split: str, left_out: Counter[str]
) -> list[tuple[Member, tuple[str, ...]]]:
    """The members of a split, with their folders below it."""
    names = SPLITS.get(split, (split,))
    images = [member.folders for member in members if _is_image(member)]
    depth = _split_depth(images)
    if depth is None:
        if split == "train":
            raise UserError(
                f"{root} has no train/ beside val/ to train members on: name a folder of "
                "train.tar and val.tar, or members with a checkpoint"
            )
        return [(member, member.folders) for member in members]
    if not any(folders[depth] in names for folders in images if len(folders) > depth):
        raise UserError(f"{root} holds no folder {' or '.join(names)}")
    chosen = []
    for member in members:
        top = member.folders[depth] if len(member.folders) > depth else None
        if top in names:
            chosen.append((member, member.folders[depth + 1 :]))
        elif top not in ALL_SPLITS and _is_image(member):
            left_out["image outside the splits' folders"] += 1
    return chosen


def _split_depth(folders: list[tuple[str, ...]]) -> int | None:
    """At which depth the folders of images are splits; None where there are none.

    A split is a folder in which all images lie, or one of several that are all called like
    splits: one that is called train beside a cat and a dog is a class.
    """
    shared = _shared(folders)
    common = folders[0][:shared] if folders else ()
    for depth, name in enumerate(common):
        if name in ALL_SPLITS:
            return depth
    tops = {path[shared] for path in folders if len(path) > shared}
    named = tops & set(ALL_SPLITS)
    # A folder more beside train and test, or beside val, is no class.
    certain = {"train"} < named or named & {"val", "validation"}
    return shared if named and (tops == named or certain) else None


def _shared(folders: list[tuple[str, ...]]) -> int:
    """How many of the first folders all images share, less the last one that each has."""
    if not folders:
        return 0
    most = max(0, min(map(len, folders)) - 1)
    first = folders[0]
    return next((k for k in range(most) if any(f[k] != first[k] for f in folders)), most)


def _members(root: Path, left_out: Counter[str]) -> Iterator[Member]:
    if root.is_dir():
        for file in sorted(root.glob("*.tar")):
            if not litter(file.name, folder=False):
                yield from _members_of(file, (file.stem,), left_out)
        return
    yield from _members_of(root, (), left_out)


def _members_of(file: Path, outer: tuple[str, ...], left_out: Counter[str]) -> Iterator[Member]:
    try:
        # Not compressed: images are read at random.
        with tarfile.open(file, "r:") as tar:
            yield from _walk(tar, str(file), 0, outer, (), left_out)
    except (tarfile.TarError, OSError, EOFError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(
            f"{file} cannot be read as a tar file that is not compressed ({reason})"
        ) from None


def _walk(
    tar: tarfile.TarFile,
    archive: str,
    offset: int,
    outer: tuple[str, ...],
    folders: tuple[str, ...],
    left_out: Counter[str],
) -> Iterator[Member]:
    """The files of an archive that begins at `offset` of the file `archive`.

    Args:
        outer: archives that it is in, without .tar, with their folders: for paths.
        folders: that it lies in, in these archives.
    """
    for entry in tar:
        if entry.isdir():
            continue
        parts = [part for part in entry.name.split("/") if part not in ("", ".")]
        kinds = [litter(part, folder=True) for part in parts[:-1]]
        kind = next(filter(None, kinds), None) or litter(parts[-1], folder=False)
        if kind is None and (entry.islnk() or entry.issym()):
            kind = LINK
        elif kind is None and (not entry.isfile() or entry.issparse()):
            kind = "neither file nor folder"
        if kind:
            left_out[f"in a {kind}" if kind.endswith("folder") else kind] += 1
            continue
        start, inner = offset + entry.offset_data, tuple(parts[:-1])
        if parts[-1].lower().endswith(".tar") and not outer[1:]:
            with tarfile.open(fileobj=tar.extractfile(entry), mode="r:") as child:
                stem = str(PurePosixPath(entry.name).with_suffix(""))
                where = folders + inner
                yield from _walk(child, archive, start, (*outer, stem), where, left_out)
            continue
        own = inner or ((PurePosixPath(outer[-1]).name,) if outer else ())
        path = "/".join([*outer, entry.name])
        yield Member(path, folders + own, Slice(archive, start, entry.size))


def read_webdataset(shards: Sequence[Path], classes: Sequence[str] = ()) -> Labelled:
    """Shards of <key>.jpg (or another image's extension) and <key>.cls, an index from 0.

    timm streams such shards; scores need to find an image again. An id is "<shard's name>/<key>".
    Raises UserError for images without a label, and where there is no image.
    """
    images: dict[str, Slice] = {}
    labels: list[int] = []
    left_out: Counter[str] = Counter()
    for shard in shards:
        of_shard: dict[str, Slice] = {}
        label_of: dict[str, int] = {}
        with tarfile.open(shard, "r:") as tar:
            for entry in tar:
                if entry.isdir():
                    continue
                key, dot, suffix = entry.name.rpartition(".")
                kind = litter(PurePosixPath(entry.name).name, folder=False)
                if kind or not entry.isfile():
                    left_out[kind or LINK] += 1
                elif f".{suffix.lower()}" in EXTENSIONS:
                    of_shard[key] = Slice(str(shard), entry.offset_data, entry.size)
                elif suffix == "cls":
                    content = tar.extractfile(entry)
                    assert content is not None
                    label_of[key] = _label(content.read(), shard, key)
                else:
                    left_out[dot + suffix.lower() if dot else "without extension"] += 1
        for key, source in of_shard.items():
            if key not in label_of:
                raise UserError(f"{shard}: image {key} has no label, {key}.cls")
            images[f"{shard.stem}/{key}"] = source
            labels.append(label_of[key])
    where = ", ".join(map(str, shards)) or "no shard"
    if not images:
        raise UserError(f"there is no image in {where}")
    names = list(classes) or numbered(max(labels), where)
    notes = Listing(str(shards[0].parent), [], [], left_out).notes()
    return Labelled(list(images), labels, names, list(images.values()), tuple(notes))


def _label(content: bytes, shard: Path, key: str) -> int:
    try:
        return int(content)
    except ValueError:
        raise UserError(
            f"{shard}: {key}.cls holds {content[:40]!r}; expected a class's index"
        ) from None
