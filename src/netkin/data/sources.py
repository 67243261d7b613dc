"""Where a dataset's images lie: the layouts that `dataset.root` may have."""

from collections.abc import Sequence
from pathlib import Path

from timm.data import ImageNetInfo

from netkin.data.folder import Folder
from netkin.data.images import Images
from netkin.data.listed import DEVKIT, GROUND_TRUTH, Listed
from netkin.data.readers import PREFIXES, SPLITS, is_timm, open_timm
from netkin.errors import UserError


def open_folder(
    root: str,
    split: str = "val",
    labels: str | None = None,
    classes: Sequence[str] = (),
    ids_are: str = "path",
) -> Images:
    """The images of one split.

    Args:
        root: <root>/<split>/<class>/<image>, or for "val" <root>/<class>/<image>; or flat images
            in those places with `labels`; or what timm's readers take (`hfds/NAME`, `wds/FOLDER`,
            tar files).
        split: "train", or "val" (also found as validation or test).
        labels: a file of "image label" lines for flat images; see `netkin.data.listed.Listed`.
        classes: names of the classes in order, where labels are their indices.
        ids_are: "path" below the split's folder, or "name": unlike paths, names are the same in
            class folders and in a flat one.
    """
    if is_timm(root):
        return open_timm(root, split, ids_are)
    folder = _split_folder(Path(root).expanduser(), split)
    if labels is not None:
        return Listed(str(folder), labels, classes)
    return Folder(str(folder), ids_are)


def open_imagenet(root: str, split: str = "val", labels: str | None = None) -> Images:
    """ImageNet-1k, or a part of it, with WordNet ids as classes.

    As `open_folder`; flat `ILSVRC2012_val_*.JPEG` files take their labels from the development
    kit (`ILSVRC2012_devkit_t12/` beside them, one folder up, or `labels=` its ground truth file).
    Ids are file names, so that every layout of the same files has the same ids.
    """
    wnids = ImageNetInfo().label_names()
    if root.startswith(PREFIXES):
        # Both name the classes in words or numbers, in the order of their WordNet ids.
        images: Images = open_timm(root, split, "name")
        classes = list(images.classes)
        if set(classes) <= set(wnids):
            return images
        numbered = all(name.isdecimal() for name in classes) and len(classes) <= len(wnids)
        if not numbered and len(classes) != len(wnids):
            raise UserError(
                f"{root} has {len(classes)} classes such as {classes[0]!r}; expected ImageNet-1k's "
                f"{len(wnids)}, or WordNet ids (dataset=folder takes any)"
            )
        return open_timm(root, split, "name", wnids)
    if is_timm(root):
        return _of_imagenet(open_timm(root, split, "name"), root)
    folder = _split_folder(Path(root).expanduser(), split)
    flat = next(folder.glob("ILSVRC2012_val_*.JPEG"), None)
    if flat is not None and labels is None:
        kits = [place / DEVKIT for place in (folder, Path(root).expanduser(), folder.parent)]
        labels = next((str(kit) for kit in kits if kit.is_file()), None)
        if labels is None:
            raise UserError(
                f"{folder} holds ImageNet's validation images without class folders; name their "
                f"labels with dataset.labels=PATH/{GROUND_TRUTH} (of the development kit), or put "
                f"{DEVKIT.parts[0]} beside them"
            )
    images = open_folder(root, split, labels, wnids, ids_are="name")
    return images if labels is not None else _of_imagenet(images, root)


def _of_imagenet(images: Images, root: str) -> Images:
    """The images, whose class folders must be named by WordNet id."""
    other = set(images.classes) - set(ImageNetInfo().label_names())
    if other:
        raise UserError(
            f"{root} has {len(other)} class folders that are no WordNet ids of ImageNet-1k, such "
            f"as {min(other)!r}; expected names such as n01440764 (dataset=folder takes any)"
        )
    return images


def _split_folder(root: Path, split: str) -> Path:
    if split not in SPLITS:
        raise UserError(f"split must be {' or '.join(SPLITS)} of a folder, got {split!r}")
    if not root.is_dir():
        raise UserError(f"dataset.root={root} is not a folder; expected {root}/{split}/<class>/...")
    found = next((root / name for name in SPLITS[split] if (root / name).is_dir()), None)
    if found is not None:
        return found
    if split == "val" and not (root / "train").is_dir():
        return root
    raise UserError(
        f"{root} has no folder {' or '.join(SPLITS[split])}; "
        f"expected {root}/{split}/<class>/<image>"
    )
