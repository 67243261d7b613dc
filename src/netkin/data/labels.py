"""Image files with a file of labels: lines of "image label", a table, or a label a line."""

import csv
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from netkin.data.classes import labels_of
from netkin.data.files import ALL_SPLITS, SPLITS, Entry, Listing, is_image, printable
from netkin.data.images import Labelled
from netkin.errors import UserError

IMAGE_COLUMNS = ("image", "imageid", "filename", "file", "name", "path", "filepath", "img", "id")
LABEL_COLUMNS = ("label", "labels", "truelabel", "class", "classname", "classid", "category")
LABEL_COLUMNS += ("target", "wnid", "synset", "predictionstring", "labelid", "y")
"""What the columns of a table are called, without case, spaces and "_"; in order of preference."""


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
        file: of lines "image label", by spaces, tabs or commas; or a table whose header names these
            two columns. Names may have folders before them (val/a.png) and lack the extension. Or
            a label a line, for all images in the order of their names.
        classes, class_order: see `netkin.data.classes.labels_of`.
        split: lines that name an image in another split's folder (train/a.png) are left out.

    Raises UserError for what cannot be read, images that are not there, and labels out of range.
    """
    lines = read_lines(file)
    if not any(re.search(r"[\s,;]", line) or is_image(line) for line in lines):
        return with_labels_in_order(listing, file, lines, classes, class_order)
    rows, first, notes = _table(file, lines)
    by_path = {entry.path: entry for entry in listing.entries}
    stems = Counter(entry.path.rpartition(".")[0] for entry in listing.images)
    by_stem = {entry.path.rpartition(".")[0]: entry for entry in listing.images}
    by_stem = {stem: entry for stem, entry in by_stem.items() if stems[stem] == 1}
    others = set(ALL_SPLITS) - set(SPLITS.get(split, ()))
    written: dict[str, str] = {}
    missing, elsewhere = [], 0
    for name, label in rows:
        entry = _find(name, by_path) or _find(name, by_stem)
        if name not in by_path and others & set(PurePosixPath(name).parts[:-1]):
            elsewhere += 1
        elif entry is None:
            missing.append(printable(name))
        elif entry.path in written:
            raise UserError(f"{file} lists image {entry.path} twice; expected one line an image")
        else:
            written[entry.path] = label
    if missing or not written:
        such = f", such as {missing[0]}" if missing else ""
        names = f"lists {len(missing)} images that are not in" if missing else "names no image of"
        raise UserError(f"{file} {names} {listing.root}{such}")
    labels, names, label_notes = labels_of(written, file.name, classes, class_order, first)
    label_of = dict(zip(written, labels, strict=True))
    paths = sorted(written)
    unlisted = sum(entry.path not in label_of for entry in listing.images)
    left_out = Counter({f"without a line in {file.name}": unlisted} if unlisted else {})
    if elsewhere:
        notes.append(f"{elsewhere:,} lines of {file.name} are of another split")
    return Labelled(
        ids=paths,
        labels=[label_of[path] for path in paths],
        classes=names,
        sources=[by_path[path].source for path in paths],
        notes=(*listing.notes(left_out), *notes, *label_notes),
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


def _find(name: str, entries: dict[str, Entry]) -> Entry | None:
    """The entry of this path, or of its end, without folders before it."""
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
    tails = ("/".join(parts[start:]) for start in range(len(parts)))
    return next((entries[tail] for tail in (name, *tails) if tail in entries), None)


def read_lines(file: Path) -> list[str]:
    """The lines of a label file that are not blank. Raises UserError."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(
            f"the label file {file} cannot be read ({reason}); expected lines of 'image label'"
        ) from None
    lines = [line.strip(" ") for line in text.split("\n") if line.strip()]
    if not lines:
        raise UserError(f"the label file {file} is empty; expected lines of 'image label'")
    return lines


def _table(file: Path, lines: Sequence[str]) -> tuple[list[tuple[str, str]], int | None, list[str]]:
    """(images and labels, the first class's index where the header tells it, notes)"""
    rows = _rows(file, lines)
    plain = [re.sub(r"[\s_-]", "", cell.lower()) for cell in rows[0]]
    images = [plain.index(name) for name in IMAGE_COLUMNS if name in plain]
    labels = [plain.index(name) for name in LABEL_COLUMNS if name in plain]
    labels = [column for column in labels if column not in images[:1]]
    has_header, width, first, notes = bool(images and labels), len(plain), None, []
    image, label = (images[0], labels[0]) if has_header else (0, 1)
    if has_header:
        header, rows = rows[0], rows[1:]
        # The NIPS 2017 competition numbers ImageNet's classes from 1.
        first = 1 if plain[label] == "truelabel" else None
        if width > 2:
            chosen = f"images are column {header[image]} and labels column {header[label]}"
            notes = [f"{chosen} of {file.name}"]
        if plain[label] == "predictionstring":  # Kaggle's, with boxes after the label
            rows = [[*row[:label], *" ".join(row[label:]).split()[:1]] for row in rows]
    elif width > 2:
        raise UserError(
            f"{file} has {width} columns and no header; expected two, image and label, or a header "
            "with such names, as in: image,label"
        )
    for number, row in enumerate(rows, start=int(has_header)):
        if len(row) <= max(image, label) or not row[image] or not row[label]:
            raise UserError(
                f"{file}, line {number + 1}: expected 'image label', got {lines[number][:80]!r}"
            )
    return [(row[image], row[label]) for row in rows], first, notes


def _rows(file: Path, lines: Sequence[str]) -> list[list[str]]:
    """Lines in columns, by tabs, commas, semicolons or spaces: the first that all lines have."""
    separator = next((s for s in "\t,;" if all(s in line for line in lines)), None)
    if separator is None:
        return [line.rsplit(None, 1) for line in lines]
    try:
        rows = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=separator)]
    except csv.Error as error:
        raise UserError(f"the label file {file} cannot be read ({error})") from None
    if len(rows) != len(lines):
        raise UserError(f"{file} has a quotation mark that is not closed on its line")
    return rows
