"""The image files of folders and tar files, and which files in them are left out."""

import os
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from netkin.data.classes import in_order, natural_key, numbered, order_note
from netkin.data.decode import File, Slice, Source
from netkin.data.images import Labelled
from netkin.errors import UserError, and_more

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".jp2")
"""Of files that are images: those of torchvision's ImageFolder, and JPEG 2000."""
LITTER_FOLDERS = ("__MACOSX", "@eaDir", "#recycle", "#snapshot", "$RECYCLE.BIN", "lost+found")
"""Folders that file systems and other programs leave beside images."""
THUMBNAILS = ("SYNOPHOTO_", "SYNOFILE_", "SYNOINDEX_")
"""What the names of a Synology disk station's thumbnails begin with."""
LINK = "link within the archive (make it with tar --dereference --hard-dereference)"
SPLITS = {"val": ("val", "validation", "test"), "train": ("train",)}
"""What a split's folder may be called."""
ALL_SPLITS = tuple(name for names in SPLITS.values() for name in names)


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of a listing: its path below the listing's root (with "/"), id and bytes."""

    path: str
    image_id: str
    source: Source

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
    """

    root: str
    entries: Sequence[Entry]
    folders: Sequence[str]
    left_out: Counter[str] = field(default_factory=Counter)

    @property
    def images(self) -> list[Entry]:
        """The entries whose names are those of images."""
        return [entry for entry in self.entries if entry.is_image]

    def notes(self, also: Counter[str] | None = None) -> list[str]:
        """What was left out, in a sentence, if anything was; `also` counts further kinds."""
        kinds = self.left_out + (also or Counter())
        if not kinds:
            return []
        total, number = printable(self.root), kinds.total()
        counts = ", ".join(f"{n:,} {printable(kind)}" for kind, n in kinds.most_common())
        what = "1 file or folder" if number == 1 else f"{number:,} files or folders"
        return [f"left out {what} of {total}: {counts}"]


def is_image(path: str) -> bool:
    """Whether a file's name is that of an image."""
    return path.lower().endswith(EXTENSIONS)


def printable(text: str) -> str:
    """A path as it can be printed: bytes that are no UTF-8 as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


def litter(name: str, folder: bool) -> str | None:
    """The kind of a file or folder that a program left, by its name; None for all others."""
    if name.startswith("."):
        return "hidden folder" if folder else "hidden"
    if folder and name in LITTER_FOLDERS:
        return f"{name} folder"
    if not folder and name.startswith(THUMBNAILS):
        return "thumbnail of a Synology disk station"
    return None


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

    def visit(folder: str, below: str, holders: frozenset[tuple[int, int]]) -> None:
        try:
            status = os.stat(folder)
            content = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            raise UserError(
                f"the folder {printable(folder)} cannot be listed ({error.strerror}); make it "
                "readable, or remove it"
            ) from None
        holders |= {(status.st_dev, status.st_ino)}
        for entry in content:
            kind = _kind(entry, holders)
            if kind == "folder":
                if not below:
                    folders.append(entry.name)
                visit(entry.path, f"{below}{entry.name}/", holders)
            elif kind == "file":
                path = below + entry.name
                entries.append(Entry(path, path, File(str(root), path)))
            else:
                left_out[kind] += 1

    visit(str(root), "", frozenset())
    return Listing(str(root), entries, folders, left_out)


def _kind(entry: os.DirEntry[str], holders: frozenset[tuple[int, int]]) -> str:
    """Of a file or folder: "file", "folder", or why it is left out."""
    try:
        folder, file = entry.is_dir(), entry.is_file()
    except OSError:  # a link to itself
        folder = file = False
    if kind := litter(entry.name, folder):
        return kind
    if folder:
        status = entry.stat()
        return "link back" if (status.st_dev, status.st_ino) in holders else "folder"
    if file or (entry.is_symlink() and is_image(entry.name)):
        return "file"
    return "link to nothing" if entry.is_symlink() else "neither file nor folder"


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
        ids_are: an id is the "path" below the listing's root, or the file's "name" alone.

    Raises UserError when there are fewer than two class folders, when one has no image, and when
    `classes` lacks one.
    """
    root, folders = listing.root, listing.folders
    if len(folders) < 2:
        flat = sum("/" not in entry.path for entry in listing.images)
        beside = f" beside {flat:,} images" if flat else ""
        raise UserError(
            f"{root} holds {len(folders)} class folders{beside}, expected two or more: "
            f"{root}/<class>/<image>; images without class folders need a file of lines "
            "'image label' (labels=FILE)"
        )
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
    return Labelled(
        ids=[e.image_id.rpartition("/")[2] if ids_are == "name" else e.image_id for e, _ in pairs],
        labels=[label for _, label in pairs],
        classes=names,
        sources=[entry.source for entry, _ in pairs],
        notes=(*listing.notes(outside), *notes),
    )


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


TarFile = tuple[str, tuple[str, ...], Slice]
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
    names = SPLITS.get(split, (split,))
    own = next((root / f"{n}.tar" for n in names if (root / f"{n}.tar").is_file()), None)
    left_out: Counter[str] = Counter()
    archives = [(own or root, ())]
    if own is None and root.is_dir():
        shards = (f for f in sorted(root.glob("*.tar")) if not litter(f.name, folder=False))
        archives = [(file, (file.stem,)) for file in shards]
    files = [file for archive in archives for file in _members(*archive, left_out)]
    if own is None:
        files = _of_split(root, files, split, left_out)
    shared = _shared([folders for path, folders, _ in files if is_image(path)])
    entries = []
    for path, folders, source in sorted(files, key=lambda file: natural_key(file[0])):
        inner = folders[shared:] if len(folders) > shared else ()
        entries.append(Entry("/".join([*inner, PurePosixPath(path).name]), path, source))
    tops = {e.path.partition("/")[0] for e in entries if e.is_image and "/" in e.path}
    return Listing(str(own or root), entries, sorted(tops), left_out)


def _of_split(
    root: Path, files: list[TarFile], split: str, left_out: Counter[str]
) -> list[TarFile]:
    """The files of a split, with their folders below it.

    A split is a folder in which all images lie, or one of several that are all called like splits:
    one that is called train beside a cat and a dog is a class.
    """
    names = SPLITS.get(split, (split,))
    images = [folders for path, folders, _ in files if is_image(path)]
    depth = _shared(images)
    common = images[0][:depth] if images else ()
    tops = {folders[depth] for folders in images if len(folders) > depth}
    named = tops & set(ALL_SPLITS)
    # A folder more beside train and test, or beside val, is no class.
    certain = {"train"} < named or named & {"val", "validation"}
    if within := [k for k, name in enumerate(common) if name in ALL_SPLITS]:
        depth = within[0]
    elif not named or not (tops == named or certain):
        if split == "train":
            raise UserError(
                f"{root} has no train/ beside val/ to train members on: name a folder of "
                "train.tar and val.tar, or members with a checkpoint"
            )
        return files
    chosen = []
    for path, folders, source in files:
        top = folders[depth] if len(folders) > depth else None
        if top in names:
            chosen.append((path, folders[depth + 1 :], source))
        elif top not in ALL_SPLITS and is_image(path):
            left_out["image outside the splits' folders"] += 1
    if not any(is_image(path) for path, *_ in chosen):
        raise UserError(f"{root} holds no folder {' or '.join(names)}")
    return chosen


def _shared(folders: list[tuple[str, ...]]) -> int:
    """How many of the first folders all images share, less the last one that each has."""
    most = min((len(path) - 1 for path in folders), default=0)
    return next((k for k in range(most) if len({path[k] for path in folders}) > 1), max(0, most))


def _members(file: Path, outer: tuple[str, ...], left_out: Counter[str]) -> Iterator[TarFile]:
    try:
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
) -> Iterator[TarFile]:
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
        if kind is None and not (entry.isfile() and not entry.issparse()):
            kind = LINK if entry.islnk() or entry.issym() else "neither file nor folder"
        if kind:
            left_out[f"in a {kind}" if kind.endswith("folder") else kind] += 1
            continue
        start, inner = offset + entry.offset_data, tuple(parts[:-1])
        if parts[-1].lower().endswith(".tar") and not outer[1:]:
            with tarfile.open(fileobj=tar.extractfile(entry), mode="r:") as child:
                stem = str(PurePosixPath(entry.name).with_suffix(""))
                yield from _walk(child, archive, start, (*outer, stem), folders + inner, left_out)
            continue
        own = inner or ((PurePosixPath(outer[-1]).name,) if outer else ())
        source = Slice(archive, start, entry.size)
        yield "/".join([*outer, entry.name]), folders + own, source


def read_webdataset(shards: Sequence[Path], classes: Sequence[str] = ()) -> Labelled:
    """Shards of <key>.jpg (or another image's extension) and <key>.cls, an index from 0.

    timm streams such shards; scores need to find an image again. An id is "<shard's name>/<key>".
    Raises UserError for images without a label, and where there is no image.
    """
    where = ", ".join(map(str, shards)) or "no shard"
    images: dict[str, Slice] = {}
    labels: dict[str, int] = {}
    left_out: Counter[str] = Counter()
    for shard in shards:
        with tarfile.open(shard, "r:") as tar:
            for entry in tar:
                if entry.isdir():
                    continue
                name, dot, suffix = entry.name.rpartition(".")
                key = f"{shard.stem}/{name}"
                kind = litter(PurePosixPath(entry.name).name, folder=False)
                if kind or not entry.isfile():
                    left_out[kind or LINK] += 1
                elif is_image(entry.name):
                    images[key] = Slice(str(shard), entry.offset_data, entry.size)
                elif suffix == "cls":
                    content = Slice(str(shard), entry.offset_data, entry.size).read()[1]
                    try:
                        labels[key] = int(content)
                    except ValueError:
                        raise UserError(
                            f"{where}: {key}.cls holds {content[:40]!r}; expected a class's index"
                        ) from None
                else:
                    left_out[dot + suffix.lower() if dot else "without extension"] += 1
    if not images:
        raise UserError(f"there is no image in {where}")
    if bare := [key for key in images if key not in labels]:
        raise UserError(f"{where}: image {bare[0]} has no label, {bare[0]}.cls")
    of_images = [labels[key] for key in images]
    names = list(classes) or numbered(max(of_images), where)
    notes = Listing(str(shards[0].parent), [], [], left_out).notes()
    return Labelled(list(images), of_images, names, list(images.values()), tuple(notes))
