"""Image files with a file of labels: lines of "image label", a table, or a label a line."""

import csv
import io
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from netkin.data.classes import labels_of
from netkin.data.files import ALL_SPLITS, EXTENSIONS, SPLITS, Entry, Listing, printable
from netkin.data.images import Labelled
from netkin.errors import UserError

IMAGE_COLUMNS = ("image", "imageid", "filename", "file", "name", "path", "filepath", "img", "id")
LABEL_COLUMNS = ("label", "labels", "truelabel", "class", "classname", "classid", "category")
LABEL_COLUMNS += ("target", "wnid", "synset", "predictionstring", "labelid", "y")
"""What the columns of a table are called, without case, spaces and "_"; in order of preference."""


@dataclass(frozen=True)
class Table:
    """A label file's rows, (image, label), without its header.

    `first` is the first class's index where the header tells it, and None elsewhere.
    """

    rows: list[tuple[str, str]]
    header: str | None = None
    first: int | None = None


def by_labels(
    listing: Listing,
    file: Path,
    classes: Sequence[str] = (),
    class_order: str = "text",
    split: str = "val",
) -> Labelled:
    """The images of a listing that a label file names; an id is an image's path in the listing.

    Args:
        listing: of a folder or an archive.
        file: of lines "image label", by spaces, tabs or commas, with or without a header; further
            columns where the header names these two. Names may have folders before them
            (val/a.png) and lack the extension. Or a label a line, for all images in the order of
            their names.
        classes, class_order: see `netkin.data.classes.labels_of`.
        split: lines that name an image in another split's folder (train/a.png) are left out.

    Raises UserError for what cannot be read, images that are not there, and labels out of range.
    """
    lines = read_lines(file)
    if not any(re.search(r"[\s,;]", line) or line.lower().endswith(EXTENSIONS) for line in lines):
        return with_labels_in_order(listing, file, lines, classes, class_order)
    finder = Finder(listing)
    table = read_table(file, lines, finder)
    pairs, missing, elsewhere = _match(table, finder, split)
    if missing or not pairs:
        such = f", such as {missing[0]}" if missing else ""
        names = f"lists {len(missing)} images that are not in" if missing else "names no image of"
        raise UserError(f"{file} {names} {listing.root}{such}")
    written = {entry.path: label for entry, label in pairs}
    if len(written) < len(pairs):
        (path, _), *_ = Counter(entry.path for entry, _ in pairs).most_common(1)
        raise UserError(f"{file} lists image {path} twice; expected one line an image")
    labels, names, label_notes = labels_of(written, file.name, classes, class_order, table.first)
    label = dict(zip(written, labels, strict=True))
    entries = sorted((entry for entry, _ in pairs), key=lambda entry: entry.path)
    unlisted = sum(entry.path not in label for entry in listing.images)
    left_out = Counter({f"without a line in {file.name}": unlisted} if unlisted else {})
    return Labelled(
        ids=[entry.path for entry in entries],
        labels=[label[entry.path] for entry in entries],
        classes=names,
        sources=[entry.source for entry in entries],
        notes=(
            *listing.notes(left_out),
            *([f"the header of {file.name} is {table.header}"] if table.header else []),
            *([f"{elsewhere:,} lines of {file.name} are of another split"] if elsewhere else []),
            *label_notes,
        ),
    )


def with_labels_in_order(
    listing: Listing,
    file: Path,
    labels: Sequence[str],
    classes: Sequence[str] = (),
    class_order: str = "text",
) -> Labelled:
    """All images of a listing, in the order of their names, with a label each."""
    entries = sorted(listing.images, key=lambda entry: entry.path)
    if len(entries) != len(labels):
        raise UserError(
            f"{file} has {len(labels)} labels, {listing.root} has {len(entries)} images; expected "
            "as many"
        )
    written = {entry.path: label for entry, label in zip(entries, labels, strict=True)}
    indices, names, notes = labels_of(written, file.name, classes, class_order)
    sources = [entry.source for entry in entries]
    return Labelled(list(written), indices, names, sources, (*listing.notes(), *notes))


def _match(
    table: Table, finder: "Finder", split: str
) -> tuple[list[tuple[Entry, str]], list[str], int]:
    """(images with labels, names that are no image, how many are of another split)"""
    others = set(ALL_SPLITS) - set(SPLITS.get(split, ()))
    pairs, missing, elsewhere = [], [], 0
    for name, label in table.rows:
        if finder.exact(name) is None and others & set(PurePosixPath(name).parts[:-1]):
            elsewhere += 1
        elif entry := finder.find(name):
            pairs.append((entry, label))
        else:
            missing.append(printable(name))
    return pairs, missing, elsewhere


class Finder:
    """Finds the files of a listing by the names that label files give them."""

    def __init__(self, listing: Listing):
        self._by_path = {entry.path: entry for entry in listing.entries}
        self._by_stem: dict[str, list[Entry]] = {}
        for entry in listing.images:
            stem = entry.path.rpartition(".")[0]
            self._by_stem.setdefault(stem, []).append(entry)

    def exact(self, name: str) -> Entry | None:
        """The file of this path."""
        return self._by_path.get(name)

    def find(self, name: str) -> Entry | None:
        """The file of this path, without folders before it, and then without extension."""
        if entry := self._by_path.get(name):
            return entry
        parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
        tails = ["/".join(parts[start:]) for start in range(len(parts))]
        for tail in tails:
            if entry := self._by_path.get(tail):
                return entry
        for tail in tails:
            if len(same := self._by_stem.get(tail, [])) == 1:
                return same[0]
        return None


def read_lines(file: Path) -> list[str]:
    """The lines of a label file that are not blank. Raises UserError."""
    try:
        content = file.read_bytes()
        utf16 = content.startswith((b"\xff\xfe", b"\xfe\xff"))  # as spreadsheets save text
        text = content.decode("utf-16" if utf16 else "utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(
            f"the label file {file} cannot be read ({reason}); expected lines of 'image label'"
        ) from None
    lines = [line.strip(" ") for line in re.split(r"\r\n|\n|\r", text) if line.strip()]
    if not lines:
        raise UserError(f"the label file {file} is empty; expected lines of 'image label'")
    return lines


def read_table(file: Path, lines: Sequence[str], finder: Finder) -> Table:
    """The images and labels of lines with several columns. Raises UserError."""
    rows = _rows(file, lines)
    header = None
    if len(rows) > 1 and _is_header(rows, finder):
        header, rows = rows[0], rows[1:]
    image, label, first = _columns(file, header, rows, finder)
    shortest = max(image, label)
    for number, row in enumerate(rows, start=1 + (header is not None)):
        if len(row) <= shortest or not row[image] or not row[label]:
            line = lines[number - 1][:80]
            raise UserError(f"{file}, line {number}: expected 'image label', got {line!r}")
    is_kaggle = header is not None and _plain(header[label]) == "predictionstring"
    pairs = [(row[image], row[label].split()[0] if is_kaggle else row[label]) for row in rows]
    return Table(pairs, None if header is None else ", ".join(header), first)


def _rows(file: Path, lines: Sequence[str]) -> list[list[str]]:
    """Lines in columns, by tabs, commas, semicolons or spaces: the first that all lines have."""
    for separator in "\t,;":
        if all(separator in line for line in lines):
            reader = csv.reader(io.StringIO("\n".join(lines)), delimiter=separator)
            try:
                rows = [[cell.strip() for cell in row] for row in reader]
            except csv.Error as error:
                raise UserError(f"the label file {file} cannot be read ({error})") from None
            if len(rows) != len(lines):
                raise UserError(f"{file} has a quotation mark that is not closed on its line")
            return rows
    return [line.rsplit(None, 1) for line in lines]


def _is_header(rows: list[list[str]], finder: Finder) -> bool:
    """Whether the first row names columns: it has no image, no number, and no label of others."""
    first = rows[0]
    if any(finder.find(cell) or cell.lower().endswith(EXTENSIONS) for cell in first if cell):
        return False
    if any(cell.isdecimal() for cell in first):
        return False
    if {_plain(cell) for cell in first} & {*IMAGE_COLUMNS, *LABEL_COLUMNS}:
        return True
    return first[-1] not in {row[-1] for row in rows[1:] if row} and not re.search(r"\d", first[0])


def _columns(
    file: Path, header: list[str] | None, rows: list[list[str]], finder: Finder
) -> tuple[int, int, int | None]:
    """(column of images, column of labels, the first class's index where the name tells it)"""
    if header is not None:
        plain = [_plain(cell) for cell in header]
        images = [plain.index(name) for name in IMAGE_COLUMNS if name in plain]
        labels = [plain.index(name) for name in LABEL_COLUMNS if name in plain]
        labels = [column for column in labels if column not in images[:1]]
        if images and labels:
            # The NIPS 2017 competition numbers ImageNet's classes from 1.
            return images[0], labels[0], 1 if plain[labels[0]] == "truelabel" else None
    width = len(header or rows[0])
    if width <= 2:
        swapped = len(rows[0]) == 2 and not finder.find(rows[0][0]) and finder.find(rows[0][1])
        return (1, 0, None) if swapped else (0, 1, None)
    names = f"named {', '.join(header)}" if header else "and no header"
    raise UserError(
        f"{file} has {width} columns {names}; expected two, image and label, or a header with such "
        "names, as in: image,label"
    )


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]", "", name.lower())
