"""Images in class folders: <class>/.../<image>."""

from collections import Counter
from collections.abc import Sequence

from netkin.data.classes import in_order, order_note
from netkin.data.files import EXTENSIONS, Entry, Listing, other_files
from netkin.data.images import Labelled
from netkin.errors import UserError


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
            outside += other_files([entry])
        elif rest:
            by_class[top].append(entry)
        else:
            outside["images outside the class folders"] += 1
    empty = [name for name in folders if not by_class[name]]
    if empty:
        more = f" (nor do {len(empty) - 1} others)" if len(empty) > 1 else ""
        raise UserError(
            f"class folder {root}/{empty[0]} holds no image{more}; expected files of "
            f"{', '.join(EXTENSIONS)}"
        )
    names, notes = _classes(listing, classes, class_order)
    pairs = [(entry, k) for k, name in enumerate(names) for entry in by_class.get(name, [])]
    return Labelled(
        ids=[e.image_id.rpartition("/")[2] if ids_are == "name" else e.image_id for e, _ in pairs],
        labels=[label for _, label in pairs],
        classes=names,
        sources=[entry.source for entry, _ in pairs],
        notes=(*listing.notes(outside), *notes),
    )


def _classes(
    listing: Listing, classes: Sequence[str], class_order: str
) -> tuple[list[str], list[str]]:
    """(names in order, notes)"""
    if not classes:
        names = in_order(listing.folders, class_order)
        return names, order_note(names, "class folders", class_order)
    unknown = [name for name in listing.folders if name not in set(classes)]
    if unknown:
        raise UserError(
            f"{listing.root} has {len(unknown)} folders that are not among the {len(classes)} "
            f"names of classes, such as {unknown[0]!r}; expected names such as {classes[0]!r}: "
            "add them there, or move the folders away"
        )
    missing = [name for name in classes if name not in set(listing.folders)]
    if not missing:
        return list(classes), []
    named = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
    return list(classes), [
        f"{len(missing)} of the {len(classes)} classes have no folder in {listing.root}: {named}"
    ]
