"""The image files of folders, tar files and WebDataset shards, and what in them is left out.

timm's readers find the same files; ours keep ids that are the same on every machine, count what is
left out, know splits, and read an archive's images at random without an index beside it.
"""

import os
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from timm.utils.misc import natural_key

from netkin.data.classes import in_order, numbered, order_note
from netkin.data.images import File, Labelled
from netkin.errors import UserError, and_more

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".jp2")
"""Of files that are images: those of torchvision's ImageFolder, and JPEG 2000."""
LITTER = ("__MACOSX", "@eaDir", "#recycle", "#snapshot", "$RECYCLE.BIN", "lost+found")
"""Folders that file systems and other programs leave beside images."""
LINK = "link within the archive (make it with tar --dereference --hard-dereference)"
SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "validation", "valid", "dev"),
    "test": ("test", "testing"),
}
"""What the folder of a split may be called, in any case."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of a listing: its path below the listing's root (with "/"), id and bytes."""

    path: str
    image_id: str
    source: File

    @property
    def is_image(self) -> bool:
        """By its name."""
        return is_image(self.path)


@dataclass(frozen=True)
class Listing:
    """The files of a folder or an archive.

    Attributes:
        root: where they lie, for messages.
        entries: all files but those left out, in the order of their paths.
        folders: names of the folders of the first level, in text order, with and without files.
        left_out: how many files and folders were left out, by kind.
        notes: which of the dataset's folders these are.
    """

    root: str
    entries: Sequence[Entry]
    folders: Sequence[str] = ()
    left_out: Counter[str] = field(default_factory=Counter)
    notes: Sequence[str] = ()

    @property
    def images(self) -> list[Entry]:
        """The entries whose names are those of images."""
        return [entry for entry in self.entries if entry.is_image]

    def labelled(
        self,
        pairs: Iterable[tuple[Entry, int]],
        classes: Sequence[str],
        left_out: Counter[str],
        notes: Sequence[str],
        ids_are: str = "path",
    ) -> Labelled:
        """Some of the entries and their labels; `left_out` are further kinds of files.

        With `ids_are` "name", ids are names without folders, unless two images share one.
        """
        entries, labels = map(list, zip(*pairs, strict=True))
        ids = [entry.image_id for entry in entries]
        names = [image.rpartition("/")[2] for image in ids]
        if kinds := self.left_out + left_out:
            counts = ", ".join(f"{n:,} {printable(kind)}" for kind, n in kinds.most_common())
            n = kinds.total()
            what = "1 file or folder" if n == 1 else f"{n:,} files or folders"
            notes = [f"left out {what} of {printable(self.root)}: {counts}", *notes]
        return Labelled(
            ids=names if ids_are == "name" and len(set(names)) == len(names) else ids,
            labels=labels,
            classes=classes,
            sources=[entry.source for entry in entries],
            notes=(*self.notes, *notes),
        )


def is_image(path: str) -> bool:
    """Whether a file's name is that of an image."""
    return path.lower().endswith(EXTENSIONS)


def printable(text: str) -> str:
    """A path as it can be printed: bytes that are no UTF-8 as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


def litter(name: str) -> str | None:
    """The kind of a file or folder that a program left, by its name; None for all others."""
    return "hidden" if name.startswith(".") else f"{name} folder" if name in LITTER else None


def split_of(name: str) -> str | None:
    """The split that a folder is, by its name; None for all others."""
    return next((split for split, names in SPLITS.items() if name.lower() in names), None)


def find_split(names: Iterable[str], split: str) -> str | None:
    """The one of some names that is a split's, if any; of "val", else that of "test"."""
    known = {name.lower(): name for name in sorted(names, reverse=True)}
    own = SPLITS.get(split_of(split) or "", (split.lower(),))
    wanted = (*own, *(SPLITS["test"] if "val" in own else ()))
    return next((known[name] for name in wanted if name in known), None)


def are_splits(names: Iterable[str]) -> bool:
    """Whether folders beside each other are splits, not classes: a folder more beside train and
    test, or beside val, is no class."""
    lower = {name.lower() for name in names}
    splits = {split_of(name) for name in lower} - {None}
    return len(splits) > 1 or bool(lower & {"val", "validation"}) or all(map(split_of, lower))


def used(folder: object, name: str, names: Iterable[str]) -> str:
    """A note on which of a dataset's folders is used, and which other splits are not."""
    others = sorted(other for other in names if other != name and split_of(other))
    return f"the images are those of {folder}" + (f", not of {and_more(others)}" if others else "")


def walk(root: Path) -> Listing:
    """All files below a folder, through links to folders, as torchvision's ImageFolder finds them.

    Left out are hidden files and folders, what other programs leave (see `litter`), links that
    lead back to a folder that holds them, and what is neither file nor folder. A link to a file
    that is missing is listed: it is an unreadable image.

    Raises UserError when a folder cannot be listed.
    """
    entries: list[Entry] = []
    left_out: Counter[str] = Counter()
    folders: list[str] = []

    def visit(folder: str, below: str, holders: frozenset[str]) -> None:
        try:
            content = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            raise UserError(
                f"the folder {printable(folder)} cannot be listed ({error.strerror}); make it "
                "readable, or remove it"
            ) from None
        holders |= {os.path.realpath(folder)}
        for entry in content:
            link, path = entry.is_symlink(), below + entry.name
            if kind := litter(entry.name):
                left_out[kind] += 1
            elif os.path.isdir(entry.path) if link else entry.is_dir():
                if link and os.path.realpath(entry.path) in holders:
                    left_out["link back"] += 1
                    continue
                if not below:
                    folders.append(entry.name)
                visit(entry.path, f"{path}/", holders)
            elif (is_image(path) or os.path.isfile(entry.path)) if link else entry.is_file():
                entries.append(Entry(path, path, File(str(root), path)))
            else:
                left_out["neither file nor folder"] += 1

    visit(str(root), "", frozenset())
    return Listing(str(root), entries, folders, left_out)


def by_folder(
    listing: Listing,
    classes: Sequence[str] = (),
    class_order: str = "text",
    ids_are: str = "path",
) -> Labelled:
    """Every image of a listing, labelled by the folder of the first level that it lies in.

    Args:
        listing: of a folder or an archive.
        classes: the folders' names in the order of the labels; by default all, in `class_order`.
        class_order: "text", or "natural" (2 before 10), as timm's.
        ids_are: see `Listing.labelled`.

    Raises UserError when there are fewer than two class folders, when one has no image, and when
    `classes` lacks one.
    """
    root, folders = listing.root, listing.folders
    by_class: dict[str, list[Entry]] = {name: [] for name in folders}
    outside: Counter[str] = Counter()
    for entry in listing.entries:
        top, _, rest = entry.path.partition("/")
        if not entry.is_image:
            outside[PurePosixPath(entry.path).suffix.lower() or "without extension"] += 1
        elif rest:
            by_class[top].append(entry)
        else:
            outside["images outside the class folders"] += 1
    if len(folders) < 2:
        flat = outside["images outside the class folders"]
        beside = f" beside {flat:,} images" if flat else ""
        raise UserError(
            f"{root} holds {len(folders)} class folders{beside}, expected two or more: "
            f"{root}/<class>/<image>; images without class folders need a file of lines "
            "'image label' (labels=FILE)"
        )
    if empty := [name for name in folders if not by_class[name]]:
        more = f" (nor do {len(empty) - 1} others)" if len(empty) > 1 else ""
        raise UserError(
            f"class folder {root}/{empty[0]} holds no image{more}; expected files of "
            f"{', '.join(EXTENSIONS)}"
        )
    names, notes = list(classes), []
    if not names:
        names = in_order(folders, class_order)
        notes = order_note(names, "class folders", class_order)
    elif unknown := [name for name in folders if name not in set(names)]:
        raise UserError(
            f"{root} has {len(unknown)} folders that are not among the {len(names)} names of "
            f"classes, such as {unknown[0]!r}; expected names such as {names[0]!r}: add them "
            "there, or move the folders away"
        )
    elif missing := [name for name in names if name not in set(folders)]:
        notes = [
            f"{len(missing)} of the {len(names)} classes have no folder in {root}: "
            f"{and_more(missing, 3)}"
        ]
    pairs = [(entry, k) for k, name in enumerate(names) for entry in by_class.get(name, [])]
    return listing.labelled(pairs, names, outside, notes, ids_are)


def is_tar(path: Path) -> bool:
    """Whether a path is a tar file, or a folder of tar files.

    A folder with other folders in it has its images there, whatever archives lie beside them.
    """
    if path.suffix == ".tar" or not path.is_dir():
        return path.suffix == ".tar"
    entries = [entry for entry in path.iterdir() if not entry.name.startswith(".")]
    return any(e.suffix == ".tar" for e in entries) and not any(e.is_dir() for e in entries)


TarFile = tuple[str, tuple[str, ...], File]
"""(its path with an outer archive's name before it, of which ids are made; the folders that it lies
in, or of a file in none the inner archive's name, since a class may be an archive; its bytes)"""


def list_tar(root: Path, split: str) -> Listing:
    """The files of one split of a tar file, of a folder of tar files, or of tar files in a tar.

    Images are read from the archive at random, so it must not be compressed. A folder's
    <split>.tar, or what lies below <split>/ in a tar, is that split; without such names everything
    is what is compared on, and there is nothing to train on. Paths start below the split's folder,
    and without folders that all files lie in; ids are whole paths.

    Raises UserError when the archive cannot be read or does not have the split.
    """
    if not root.exists():
        raise UserError(f"root={root} is not there; expected a tar file")
    left_out: Counter[str] = Counter()
    archives = {f.stem: f for f in sorted(root.glob("*.tar")) if not litter(f.name)}
    found, place, note = [(f, (stem,)) for stem, f in archives.items()], root, ""
    if own := find_split(archives, split):
        place, note = archives[own], used(archives[own], own, archives)
        found = [(place, ())]
    files = [file for tar in found or [(root, ())] for file in _members(*tar, left_out)]
    depth = 0
    while images := [folders[depth:] for path, folders, _ in files if is_image(path)]:
        tops = {folders[0] if folders else "" for folders in images}
        # One that is called train beside a cat and a dog is a class.
        if not note and are_splits(tops):
            if not (name := find_split(tops, split)):
                raise UserError(f"{place} holds no folder {split}, but {and_more(sorted(tops))}")
            beside = [f for f in images if not f or not split_of(f[0])]
            left_out |= Counter({"image outside the splits' folders": len(beside)})
            files = [file for file in files if file[1][depth : depth + 1] == (name,)]
            place, note = place / name, used(place / name, name, tops)
        elif len(tops) == 1 and min(map(len, images)) > 1:
            place /= tops.pop()
        else:
            break
        depth += 1
    if not note and split_of(split) == "train":
        raise UserError(
            f"{root} has no train/ beside val/ to train members on: name a folder of train.tar and "
            "val.tar, or members with a checkpoint"
        )
    entries = [
        Entry("/".join([*folders[depth:], PurePosixPath(path).name]), path, source)
        for path, folders, source in sorted(files, key=lambda file: natural_key(file[0]))
    ]
    tops = {e.path.partition("/")[0] for e in entries if e.is_image and "/" in e.path}
    return Listing(str(place), entries, sorted(tops), left_out, [note or used(place, "", ())])


def _members(file: Path, outer: tuple[str, ...], left_out: Counter[str]) -> Iterator[TarFile]:
    """The files of an archive; `outer` is what stands before their paths."""

    def visit(
        tar: tarfile.TarFile, offset: int, outer: tuple[str, ...], folders: tuple[str, ...]
    ) -> Iterator[TarFile]:
        """Of an archive that begins at `offset`, within the archives `outer` and their folders."""
        for entry in tar:
            if entry.isdir():
                continue
            parts = [part for part in entry.name.split("/") if part not in ("", ".")]
            kind = next(filter(None, map(litter, parts)), None)
            if kind is None and not entry.isfile():
                kind = LINK if entry.islnk() or entry.issym() else "neither file nor folder"
            start, inner = offset + entry.offset_data, tuple(parts[:-1])
            if kind:
                left_out[kind] += 1
            elif parts[-1].lower().endswith(".tar") and not outer[1:]:
                with tarfile.open(fileobj=tar.extractfile(entry), mode="r:") as child:
                    stem = str(PurePosixPath(entry.name).with_suffix(""))
                    yield from visit(child, start, (*outer, stem), folders + inner)
            else:
                last = inner or ((PurePosixPath(outer[-1]).name,) if outer else ())
                source = File(str(file), "", start, entry.size)
                yield "/".join([*outer, entry.name]), folders + last, source

    try:
        with tarfile.open(file, "r:") as tar:
            yield from visit(tar, 0, outer, ())
    except (tarfile.TarError, OSError, EOFError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(
            f"{file} cannot be read as a tar file that is not compressed ({reason})"
        ) from None


def read_webdataset(shards: Sequence[Path], classes: Sequence[str] = ()) -> Labelled:
    """Shards of <key>.jpg (or another image's extension) and <key>.cls, an index from 0.

    timm streams such shards; scores need to find an image again. An id is "<shard's name>/<key>".
    Raises UserError for images without a label, and where there is no image.
    """
    where = ", ".join(map(str, shards)) or "no shard"
    images: dict[str, Entry] = {}
    labels: dict[str, int] = {}
    left_out: Counter[str] = Counter()
    for shard in shards:
        for path, _, source in _members(shard, (shard.stem,), left_out):
            key, dot, suffix = path.rpartition(".")
            if is_image(path):
                images[key] = Entry(path, key, source)
            elif suffix != "cls":
                left_out[dot + suffix.lower() if dot else "without extension"] += 1
            elif (content := source.read()[1]).strip().isdigit():
                labels[key] = int(content)
            else:
                raise UserError(f"{where}: {path} holds {content[:40]!r}; expected a class's index")
    if not images:
        raise UserError(f"there is no image in {where}")
    if bare := [key for key in images if key not in labels]:
        raise UserError(f"{where}: image {bare[0]} has no label, {bare[0]}.cls")
    pairs = [(entry, labels[key]) for key, entry in images.items()]
    names = list(classes) or numbered(max(label for _, label in pairs), where)
    return Listing(str(shards[0].parent), []).labelled(pairs, names, left_out, ())
