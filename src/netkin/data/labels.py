"""Image files with a file of labels: lines of "image label", a table, or a label a line."""

import csv
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from netkin.data.classes import in_order, labels_of
from netkin.data.files import Listing, find_split, is_image, printable, split_of
from netkin.data.images import Labelled
from netkin.errors import UserError, and_more, reading

IMAGE_COLUMNS = ("image", "imageid", "filename", "file", "name", "path", "filepath", "img", "id")
LABEL_COLUMNS = ("label", "labels", "truelabel", "class", "classname", "classid", "category")
LABEL_COLUMNS += ("target", "wnid", "synset", "predictionstring", "labelid", "y")
EXPECTED = "expected lines of 'image label'"
SPLIT_COLUMNS = ("split", "datasplit", "set", "subset", "partition", "usage", "phase")
"""What the columns of a table are called, without case, spaces and "_"; in order of preference."""


def by_labels(
    listing: Listing,
    file: Path,
    classes: Sequence[str] = (),
    class_order: str = "text",
    split: str = "val",
    lines: Sequence[str] = (),
) -> Labelled:
    """The images of a listing that a label file names; an id is an image's path in the listing.

    Args:
        listing: of a folder or an archive.
        file: of lines "image label", by spaces, tabs or commas; or a table whose header names these
            two columns. Names may have folders before them (val/a.png) and lack the extension. Or
            a label a line, for all images in the order of their names.
        classes, class_order: see `netkin.data.classes.labels_of`.
        split: lines of another split, by a column of the table or the image's folder (train/a.png),
            are left out.
        lines: in place of the file's own.

    Raises UserError for what cannot be read, images that are not there, and labels out of range.
    """
    lines, images = lines or read_lines(file), listing.images
    if any(re.search(r"[\s,;]", line) or is_image(line) for line in lines):
        rows, first, notes = _table(file, lines, split)
    elif len(images) == len(lines):
        rows, first, notes = list(zip(sorted(images), lines, strict=True)), None, []
    else:
        raise UserError(
            f"{file} has {len(lines)} labels, {listing.root} has {len(images)} images; expected as "
            "many"
        )
    stems = Counter(path.rpartition(".")[0] for path in images)
    known = {s: path for path in images if stems[s := path.rpartition(".")[0]] == 1}
    known |= {path: path for path in listing.files}
    own = split_of(PurePosixPath(listing.root).stem) or split_of(split)
    written: dict[str, str] = {}
    missing, elsewhere = [], 0
    for name, label in rows:
        parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
        tails = ("/".join(parts[start:]) for start in range(len(parts)))
        path = next((known[tail] for tail in (name, *tails) if tail in known), None)
        if name not in listing.files and {*map(split_of, parts[:-1])} - {None, own}:
            elsewhere += 1
        elif path is None:
            missing.append(printable(name))
        elif path in written:
            raise UserError(f"{file} lists image {path} twice; expected one line an image")
        else:
            written[path] = label
    if missing or not written:
        such = f", such as {missing[0]}" if missing else ""
        names = f"lists {len(missing)} images that are not in" if missing else "names no image of"
        raise UserError(f"{file} {names} {listing.root}{such}")
    if elsewhere:
        notes.append(f"{elsewhere:,} lines of {file.name} are of another split")
    paths = sorted(written)
    labels, classes, more = labels_of(
        paths, [written[path] for path in paths], file.name, classes, class_order, first
    )
    bare = f"without a line in {file.name}"
    left_out = Counter(bare for path in images if path not in written)
    of = dict(zip(paths, labels, strict=True))
    return listing.labelled(of, classes, left_out, [*notes, *more])


ANNOTATIONS = "val_annotations.txt"
"""Tiny ImageNet's labels of val/images: image, WordNet id, and a box, by tabs."""
ALL_CLASSES = "wnids.txt"
"""Tiny ImageNet's list of its classes, beside train/ and val/."""


def is_annotated(listing: Listing) -> bool:
    """Whether a folder is the val/ of Tiny ImageNet as it is published."""
    return listing.folders == ["images"] and (Path(listing.root) / ANNOTATIONS).is_file()


def by_annotations(
    listing: Listing, classes: Sequence[str] = (), class_order: str = "text"
) -> Labelled:
    """Tiny ImageNet's val/, whose classes are those of train/, in the same order.

    Raises UserError where its list of classes is not beside val/, since the images alone may lack
    some, so that labels would be other than in training.
    """
    file = Path(listing.root) / ANNOTATIONS
    rows = [line.split("\t") for line in read_lines(file)]
    if wrong := next((row for row in rows if len(row) != 6), None):
        raise UserError(f"{file}: expected six columns (image, class, box), got {wrong}")
    beside = Path(listing.root).parent / ALL_CLASSES
    if not classes and not beside.is_file():
        raise UserError(
            f"{beside} is not there, which lists the classes of train and val; put it there, or "
            "name them with classes=FILE"
        )
    names = list(classes) or in_order(read_lines(beside), class_order)
    lines = [f"images/{image}\t{label}" for image, label, *_ in rows]
    return by_labels(listing, file, names, lines=lines)


def read_lines(file: Path) -> list[str]:
    """The lines of a label file that are not blank. Raises UserError."""
    with reading(f"the label file {file}", EXPECTED, OSError, UnicodeDecodeError):
        text = file.read_text(encoding="utf-8-sig")
    lines = [line.strip(" ") for line in text.split("\n") if line.strip()]
    if not lines:
        raise UserError(f"the label file {file} is empty; {EXPECTED}")
    return lines


def _table(
    file: Path, lines: Sequence[str], split: str
) -> tuple[list[tuple[str, str]], int | None, list[str]]:
    """(images and labels of a split, the first class's index where the header tells it, notes)"""
    rows, first, notes = _rows(file, lines), None, []
    plain = [re.sub(r"[\s_-]", "", cell.lower()) for cell in rows[0]]
    images, labels, splits = (
        [plain.index(name) for name in names if name in plain]
        for names in (IMAGE_COLUMNS, LABEL_COLUMNS, SPLIT_COLUMNS)
    )
    labels = [column for column in labels if column not in images[:1]]
    has_header, width = bool(images and labels), len(plain)
    image, label = (images[0], labels[0]) if has_header else (0, 1)
    splits = splits[:1] if has_header else []
    if width > 2 and not has_header:
        raise UserError(
            f"{file} has {width} columns and no header; expected two, image and label, or a header "
            "with such names, as in: image,label"
        )
    for line, row in list(zip(lines, rows, strict=True))[has_header:]:
        if len(row) <= max(image, label, *splits) or not row[image] or not row[label]:
            number = lines.index(line) + 1
            raise UserError(f"{file}, line {number}: expected 'image label', got {line[:80]!r}")
    if has_header:
        header, *rows = rows
        # The NIPS 2017 competition numbers ImageNet's classes from 1.
        first = 1 if plain[label] == "truelabel" else None
        if width > 2:
            chosen = f"images are column {header[image]} and labels column {header[label]}"
            notes = [f"{chosen} of {file.name}"]
        if flags := [name for name in plain if name.startswith("is") and split_of(name[2:])]:
            raise UserError(
                f"{file.name} has a column {header[plain.index(flags[0])]}: put the split's name "
                "into a column split, or remove the rows of other splits, and this column"
            )
        for column in splits:
            values = sorted({row[column] for row in rows})
            value, named = find_split(values, split), f"column {header[column]} of {file.name}"
            if value is not None:
                rows = [row for row in rows if row[column].lower() == value.lower()]
                notes.append(f"by {named}, the images are its {len(rows):,} rows of {value}")
            elif any(map(split_of, values)):
                raise UserError(f"{named} has no {split}, but {and_more(values)}")
            else:
                notes.append(f"{named} names no split, but {and_more(values)}: it is not used")
        if plain[label] == "predictionstring":  # Kaggle's, with boxes after the label
            rows = [[*row[:label], *" ".join(row[label:]).split()[:1]] for row in rows]
    return [(row[image], row[label]) for row in rows], first, notes


def _rows(file: Path, lines: Sequence[str]) -> list[list[str]]:
    """Lines in columns, by tabs, commas, semicolons or spaces: the first that all lines have."""
    separator = next((s for s in "\t,;" if all(s in line for line in lines)), None)
    if separator is None:
        return [line.rsplit(None, 1) for line in lines]
    with reading(f"the label file {file}", EXPECTED, csv.Error):
        rows = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=separator)]
    if len(rows) != len(lines):
        raise UserError(f"{file} has a quotation mark that is not closed on its line")
    return rows
