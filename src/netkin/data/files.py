"""The files of a dataset: the places of their bytes, and which files of a folder are left out."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Protocol

from PIL import Image

from netkin.data.decode import STAMPED, decode, stamp
from netkin.errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".jp2")
"""Of files that are images: those of torchvision's ImageFolder, and JPEG 2000."""
LITTER_FOLDERS = ("__MACOSX", "@eaDir", "#recycle", "#snapshot", "$RECYCLE.BIN", "lost+found")
"""Folders that file systems and other programs leave beside images."""
LITTER_FILES = ("SYNOPHOTO_", "SYNOFILE_", "SYNOINDEX_")
"""What the names of a Synology disk station's thumbnails begin with."""
UNREADABLE = "unreadable"
"""The stamp of a file that cannot be opened."""


class Source(Protocol):
    """The place of one image's bytes."""

    def load(self, image_id: str) -> Image.Image:
        """The image as 8-bit RGB. Raises UnreadableImage under the id."""
        ...

    def stamp(self) -> str:
        """See `netkin.data.decode.stamp`."""
        ...


@dataclass(frozen=True, slots=True)
class File:
    """A file of its own, below the folder `root`."""

    root: str
    path: str

    def load(self, image_id: str) -> Image.Image:
        """The image as 8-bit RGB. Raises UnreadableImage."""
        return decode(image_id, Path(self.root, self.path), self.root)

    def stamp(self) -> str:
        """Its stamp, or `UNREADABLE`: decoding reports the error, as of all unreadable images."""
        try:
            with Path(self.root, self.path).open("rb") as file:
                return stamp(os.fstat(file.fileno()).st_size, file.read(STAMPED))
        except OSError:
            return UNREADABLE


@dataclass(frozen=True, slots=True)
class Slice:
    """Some bytes of a tar file, from `offset` on."""

    archive: str
    offset: int
    size: int

    def _read(self, size: int) -> bytes:
        with open(self.archive, "rb") as file:
            file.seek(self.offset)
            return file.read(size)

    def load(self, image_id: str) -> Image.Image:
        """The image as 8-bit RGB. Raises UnreadableImage."""
        return decode(image_id, lambda: self._read(self.size), self.archive)

    def stamp(self) -> str:
        """Its stamp, or `UNREADABLE`."""
        try:
            return stamp(self.size, self._read(min(self.size, STAMPED)))
        except OSError:
            return UNREADABLE


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of a listing: its path below the listing's root (with "/"), id and bytes."""

    path: str
    image_id: str
    source: Source

    @property
    def is_image(self) -> bool:
        """Whether the name is that of an image."""
        return self.path.lower().endswith(EXTENSIONS)


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


def other_files(entries: Sequence[Entry]) -> Counter[str]:
    """The kinds of those entries that are no images: ".txt", "without extension"."""
    return Counter(
        PurePosixPath(entry.path).suffix.lower() or "without extension"
        for entry in entries
        if not entry.is_image
    )


def litter(name: str, folder: bool) -> str | None:
    """The kind of a file or folder that a program left, by its name; None for all others."""
    if name.startswith("."):
        return "hidden folder" if folder else "hidden"
    if folder and name in LITTER_FOLDERS:
        return f"{name} folder"
    if not folder and name.startswith(LITTER_FILES):
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
    if file or (entry.is_symlink() and entry.name.lower().endswith(EXTENSIONS)):
        return "file"
    return "link to nothing" if entry.is_symlink() else "neither file nor folder"


def printable(text: str) -> str:
    """A path as it can be printed: bytes that are no UTF-8 as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()
