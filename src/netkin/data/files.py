"""The image files of folders, tar files and WebDataset shards, and what in them is left out.

timm's readers find the same files; ours keep ids that are the same on every machine, count what is
left out, know splits, and read an archive's images at random without an index beside it.
"""

import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from netkin.data.classes import in_order, natural_key, numbered, order_note
from netkin.data.images import File, Labelled
from netkin.errors import UserError, and_more, reading

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".jp2")
"""Of files that are images: those of torchvision's ImageFolder, and JPEG 2000."""
LITTER = ("__MACOSX", "@eaDir", "#recycle", "#snapshot", "$RECYCLE.BIN", "lost+found")
"""Folders that file systems and other programs leave beside images."""
LINK = "link within the archive (make it with tar --dereference --hard-dereference)"
SPLITS = {
    "train": ("train", "training", "trn"),
    "val": ("val", "validation", "valid", "dev"),
    "test": ("test", "testing", "tst"),
}
"""What the folder of a split may be called, in any case; "_set" or a year may follow."""


@dataclass(frozen=True)
class Listing:
    """The files of a folder or an archive.

    Attributes:
        root: where they lie, for messages.
        files: all but those left out, by their path below the root (with "/").
        folders: names of the folders of the first level, in text order, with and without files.
        left_out: how many files and folders were left out, by kind.
        notes: which of the dataset's folders these are.
    """

    root: str
    files: Mapping[str, File]
    folders: Sequence[str] = ()
    left_out: Counter[str] = field(default_factory=Counter)
    notes: Sequence[str] = ()

    @property
    def images(self) -> list[str]:
        """The paths of files whose names are those of images."""
        return list(filter(is_image, self.files))

    def labelled(
        self,
        labels: Mapping[str, int],
        classes: Sequence[str],
        left_out: Counter[str],
        notes: Sequence[str] = (),
    ) -> Labelled:
        """The files that have a label, by path; `left_out` are further kinds of files."""
        if kinds := self.left_out + left_out:
            counts = ", ".join(f"{n:,} {printable(kind)}" for kind, n in kinds.most_common())
            n = kinds.total()
            what = "1 file or folder" if n == 1 else f"{n:,} files or folders"
            notes = [f"left out {what} of {printable(self.root)}: {counts}", *notes]
        sources = [self.files[path] for path in labels]
        values = list(labels.values())
        return Labelled(list(labels), values, classes, sources, (*self.notes, *notes))


def is_image(path: str) -> bool:
    """Whether a file's name is that of an image."""
    return path.lower().endswith(EXTENSIONS)


def printable(text: str) -> str:
    """A path as it can be printed: bytes that are no UTF-8 as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


def litter(name: str) -> str | None:
    """The kind of a file or folder that a program left, by its name; None for all others."""
    return "hidden" if name.startswith(".") else f"{name} folder" if name in LITTER else None


def folders_of(path: Path) -> list[str]:
    """Names of the folders in a folder, if it is one, less those of `litter`."""
    inside = os.scandir(path) if path.is_dir() else ()
    return sorted(entry.name for entry in inside if not litter(entry.name) and _is_folder(entry))


def _is_folder(entry: os.DirEntry) -> bool:
    """Also through a link, where one that leads nowhere, or to itself, is no error."""
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def split_of(name: str) -> str | None:
    """The split that a folder is, by its name; None for all others."""
    plain = re.sub(r"[ _.-]*(set|images|(19|20)\d\d)?[ _.-]*$", "", name.lower())
    return next((split for split, names in SPLITS.items() if plain in names), None)


def find_split(names: Iterable[str], split: str) -> str | None:
    """The one of some names that is a split's, if any; of "val", else that of "test"."""
    wanted, names = split_of(split), sorted(names)
    if wanted is None:
        return next((name for name in names if name.lower() == split.lower()), None)
    for each in (wanted, *(["test"] if wanted == "val" else [])):
        spelled = [name for name in names if split_of(name) == each]
        order = [*SPLITS[each], *(name.lower() for name in spelled)]
        if spelled:
            return min(spelled, key=lambda name: order.index(name.lower()))
    return None


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
    that is missing is listed: it is an unreadable image. Raises OSError.
    """
    files: dict[str, File] = {}
    left_out: Counter[str] = Counter()
    folders: list[str] = []

    def visit(folder: str, below: str, holders: frozenset[str]) -> None:
        holders |= {os.path.realpath(folder)}
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            link, path = entry.is_symlink(), below + entry.name
            if kind := litter(entry.name):
                left_out[kind] += 1
            elif _is_folder(entry):
                if link and os.path.realpath(entry.path) in holders:
                    left_out["link back"] += 1
                    continue
                if not below:
                    folders.append(entry.name)
                visit(entry.path, f"{path}/", holders)
            elif (is_image(path) or os.path.isfile(entry.path)) if link else entry.is_file():
                files[path] = File(str(root), path)
            else:
                left_out["neither file nor folder"] += 1

    visit(str(root), "", frozenset())
    return Listing(str(root), files, folders, left_out)


def by_folder(listing: Listing, classes: Sequence[str] = (), class_order: str = "text") -> Labelled:
    """Every image of a listing, labelled by the folder of the first level that it lies in.

    Args:
        listing: of a folder or an archive.
        classes: the folders' names in the order of the labels; by default all, in `class_order`.
        class_order: "text", or "natural" (2 before 10), as timm's.

    Raises UserError when there are fewer than two class folders, when one has no image, and when
    `classes` lacks one.
    """
    root, folders = listing.root, listing.folders
    by_class: dict[str, list[str]] = {name: [] for name in folders}
    outside: Counter[str] = Counter()
    for path in listing.files:
        top, _, rest = path.partition("/")
        if not is_image(path):
            outside[PurePosixPath(path).suffix.lower() or "without extension"] += 1
        elif rest:
            by_class[top].append(path)
        else:
            outside["images outside the class folders"] += 1
    if len(folders) < 2:
        flat = outside["images outside the class folders"]
        raise UserError(
            f"{root} holds {len(folders)} class folders{f' beside {flat:,} images' if flat else ''}"
            f", expected two or more: {root}/<class>/<image>; images without class folders need a "
            "file of lines 'image label' (labels=FILE)"
        )
    if empty := [name for name in folders if not by_class[name]]:
        raise UserError(
            f"class folder {root}/{and_more(empty, 1)} holds no image; expected files of "
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
        listed = and_more(missing, 3)
        notes = [f"{len(missing)} of the {len(names)} classes have no folder in {root}: {listed}"]
    labels = {path: k for k, name in enumerate(names) for path in by_class.get(name, [])}
    return listing.labelled(labels, names, outside, notes)


def list_tar(root: Path, split: str) -> Listing:
    """The files of one split of a tar file, of a folder of tar files, or of tar files in a tar.

    Images are read from the archive at random, so it must not be compressed. A folder's
    <split>.tar, or what lies below <split>/ in a tar, is that split; without such names everything
    is what is compared on, and there is nothing to train on. Paths start below the split's folder,
    and without folders that all files lie in.

    Raises UserError when the archive cannot be read or does not have the split.
    """
    if not root.exists():
        raise UserError(f"root={root} is not there; expected a tar file")
    left_out: Counter[str] = Counter()
    archives = {f.stem: f for f in sorted(root.glob("*.tar")) if not litter(f.name)}
    place, note = root, ""
    if own := find_split(archives, split):
        place, note = archives[own], used(archives[own], own, archives)
        files = list(_members(place, left_out))
    else:
        tars = [(f, stem) for stem, f in archives.items()] or [(root, "")]
        files = [found for f, stem in tars for found in _members(f, left_out, stem)]
    while tops := {parts[0] if parts[1:] else "" for parts, _ in files if is_image(parts[-1])}:
        # One that is called train beside a cat and a dog is a class.
        if not note and are_splits(tops):
            if not (name := find_split(tops, split)):
                raise UserError(f"{place} holds no folder {split}, but {and_more(sorted(tops))}")
            beside = sum(split_of(parts[0]) is None and is_image(parts[-1]) for parts, _ in files)
            left_out += Counter({"image outside the splits' folders": beside})
            place, note = place / name, used(place / name, name, tops)
        elif len(tops) == 1 and all(len(parts) > 2 for parts, _ in files if is_image(parts[-1])):
            name = tops.pop()
            place /= name
        else:
            break
        files = [(parts[1:], source) for parts, source in files if parts[:-1][:1] == (name,)]
    if not note and split_of(split) == "train":
        raise UserError(
            f"{root} has no train/ beside val/ to train members on: name a folder of train.tar and "
            "val.tar, or members with a checkpoint"
        )
    files.sort(key=lambda file: natural_key("/".join(file[0])))
    by_path = {"/".join(parts): source for parts, source in files}
    if len(by_path) < len(files):
        ((twice, _),) = Counter("/".join(parts) for parts, _ in files).most_common(1)
        raise UserError(f"{place} holds {twice} twice; expected one file of a name")
    folders = sorted({parts[0] for parts, _ in files if parts[1:] and is_image(parts[-1])})
    return Listing(str(place), by_path, folders, left_out, [note or used(place, "", ())])


def _members(
    file: Path, left_out: Counter[str], name: str = ""
) -> Iterator[tuple[tuple[str, ...], File]]:
    """(the parts of its path, its bytes) of each file of an archive.

    An archive within it, or itself where it has a name, is the folder of what is in none there: a
    class may be an archive.
    """

    def visit(
        tar: tarfile.TarFile, offset: int, above: Sequence[str], name: str
    ) -> Iterator[tuple[tuple[str, ...], File]]:
        for entry in tar:
            if entry.isdir():
                continue
            *folders, last = [part for part in entry.name.split("/") if part not in ("", ".")]
            kind = next(filter(None, map(litter, [*folders, last])), None)
            if kind is None and not entry.isfile():
                kind = LINK if entry.islnk() or entry.issym() else "neither file nor folder"
            start = offset + entry.offset_data
            if kind:
                left_out[kind] += 1
            elif last.lower().endswith(".tar"):
                with tarfile.open(fileobj=tar.extractfile(entry), mode="r:") as child:
                    yield from visit(child, start, [*above, *folders], last[: -len(".tar")])
            else:
                inside = folders or ([name] if name else [])
                yield (*above, *inside, last), File(str(file), "", start, entry.size)

    expected = "expected a tar file that is not compressed"
    with (
        reading(file, expected, tarfile.TarError, OSError, EOFError),
        tarfile.open(file, "r:") as tar,
    ):
        yield from visit(tar, 0, (), name)


def read_webdataset(shards: Sequence[Path], classes: Sequence[str] = ()) -> Labelled:
    """Shards of <key>.jpg (or another image's extension) and <key>.cls, an index from 0.

    timm streams such shards; scores need to find an image again. An id is "<shard's name>/<key>".
    Raises UserError for images without a label, and where there is no image.
    """
    where = ", ".join(map(str, shards)) or "no shard"
    images: dict[str, File] = {}
    labels: dict[str, int] = {}
    left_out: Counter[str] = Counter()
    for shard in shards:
        for parts, source in _members(shard, left_out):
            key, dot, suffix = "/".join([shard.stem, *parts]).rpartition(".")
            if is_image(parts[-1]):
                images[key] = source
            elif suffix != "cls":
                left_out[dot + suffix.lower() if dot else "without extension"] += 1
            elif (content := source.read()[1]).strip().isdigit():
                labels[key] = int(content)
            else:
                raise UserError(
                    f"{where}: {key}.cls holds {content[:40]!r}; expected a class's index"
                )
    if not images:
        raise UserError(f"there is no image in {where}")
    if bare := [key for key in images if key not in labels]:
        raise UserError(f"{where}: image {bare[0]} has no label, {bare[0]}.cls")
    labels = {key: labels[key] for key in images}
    names = list(classes) or numbered(max(labels.values()), where)
    return Listing(str(shards[0].parent), images).labelled(labels, names, left_out)
