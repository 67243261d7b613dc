"""Which images are scored: a stratified sample, kept as a manifest that others can use."""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from netkin.data.files import printable
from netkin.data.images import Images
from netkin.errors import UserError, reading

SHUFFLE = 1
"""Tells the draw of the order of images from that of the images, which has the same seed."""


@dataclass(frozen=True)
class Subset:
    """The images of a run: their ids, labels and positions in the dataset, in a fixed order.

    `classes` are the names of all the dataset's classes, `stamps` tell each image from another of
    its id (see `Images.stamp`), and `skipped` are images that were drawn but could not be read:
    (id, reason).
    """

    name: str
    ids: tuple[str, ...]
    labels: tuple[int, ...]
    positions: tuple[int, ...]
    classes: tuple[str, ...] = ()
    stamps: tuple[str, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()

    @property
    def digest(self) -> str:
        """Hash of ids, labels, classes and stamps: one digest, the very same images."""
        return _sha256([self.ids, self.labels, self.classes, self.stamps])

    def __len__(self) -> int:
        return len(self.ids)

    def manifest(self) -> dict:
        """What is written beside the results, and what `from_manifest` reads."""
        return {
            "name": self.name,
            "sha256": self.digest,
            "classes": list(self.classes),
            "ids": list(self.ids),
            "labels": list(self.labels),
            "stamps": list(self.stamps),
            "skipped": [{"id": image, "reason": reason} for image, reason in self.skipped],
        }

    def without(self, unreadable: Mapping[str, str]) -> "Subset":
        """The subset less some images, id to reason, which are listed in `skipped`."""
        kept = [i for i, image in enumerate(self.ids) if image not in unreadable]
        values = {
            name: tuple(getattr(self, name)[i] for i in kept)
            for name in ("ids", "labels", "positions", "stamps")
        }
        return replace(self, **values, skipped=(*self.skipped, *sorted(unreadable.items())))


def draw(
    images: Images,
    name: str,
    per_class: int | None = None,
    seed: int = 0,
    fraction: float | None = None,
    stamped: bool = True,
    at_most: int | None = None,
    shuffled: bool | None = None,
) -> Subset:
    """A stratified sample without replacement, drawn with `seed`, or all images.

    Args:
        images: the dataset.
        name: of the subset.
        per_class: how many of each class.
        seed: of the draw, which depends on ids, not on the order in which a dataset lists them.
        fraction: instead of per_class, what share of each class, in (0, 1], rounded, at least one.
        at_most: images in all: per_class is lowered to keep to it, but not below 1.
        stamped: whether to read each image's stamp, which tells it from another of its id.
        shuffled: whether the images are in a random order, which is drawn with `seed`, too, so that
            the first ones are a sample of all; else they are in the order of their ids.

    Raises UserError when a class holds fewer images than `per_class`, and for an id listed twice.
    """
    ids, labels, classes = list(images.ids), list(images.labels), tuple(images.classes)
    _check(ids, labels, classes)
    if per_class is not None and fraction is not None:
        raise UserError("per_class and fraction exclude each other: give one of them")
    for key, value in (("per_class", per_class), ("at_most", at_most)):
        if value is not None and value < 1:
            raise UserError(f"{key} must be 1 or more, got {value}")
    if not isinstance(seed, int) or seed < 0:
        raise UserError(f"seed must be a whole number of 0 or more, got {seed!r}")
    if fraction is not None and not 0 < fraction <= 1:
        raise UserError(f"fraction must be in (0, 1], got {fraction}")
    order = sorted(range(len(ids)), key=ids.__getitem__)
    if per_class is not None or fraction is not None:
        each = per_class or 0
        if per_class is not None and at_most is not None:
            each = max(1, min(per_class, at_most // len(classes)))
        by_class = defaultdict(list)
        for position in order:
            by_class[labels[position]].append(position)
        rng, chosen = np.random.default_rng(seed), set()
        for label, members in sorted(by_class.items()):  # a part of ImageNet lacks classes
            n = len(members)
            size = each if fraction is None else min(n, max(1, round(fraction * n)))
            if n < size:
                raise UserError(
                    f"per_class={size} takes more images than class {classes[label]!r} has ({n}); "
                    f"take per_class={min(map(len, by_class.values()))}, or all images"
                )
            chosen.update(rng.choice(members, size, replace=False).tolist())
        order = [position for position in order if position in chosen]
    if shuffled:
        order = np.random.default_rng([seed, SHUFFLE]).permutation(order).tolist()
    return Subset(
        name,
        ids=tuple(ids[i] for i in order),
        labels=tuple(labels[i] for i in order),
        positions=tuple(order),
        classes=classes,
        stamps=tuple(images.stamp(i) for i in order) if stamped else (),
    )


def from_manifest(images: Images, file: str | Path, dataset: str) -> Subset:
    """The subset that a manifest names, as `Subset.manifest` or the store wrote it.

    Raises UserError when the file is no manifest, was changed, is of another dataset, names images
    that are not there, or labels them otherwise.
    """
    path = Path(file).expanduser()
    expected = "expected a manifest.json that netkin wrote, from <store>/<dataset>/<subset>/"
    with reading(f"file={path}", expected, OSError, ValueError, KeyError, TypeError):
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        subset = Subset(
            str(content["name"]),
            tuple(content["ids"]),
            tuple(content["labels"]),
            (),
            tuple(content["classes"]),
            tuple(content["stamps"]),
            tuple((entry["id"], entry["reason"]) for entry in content["skipped"]),
        )
        sha256, of_dataset = content["sha256"], content.get("dataset", dataset)
    if of_dataset != dataset:
        raise UserError(f"file={path} is a manifest of dataset {of_dataset!r}, not {dataset!r}")
    if subset.digest != sha256:
        raise UserError(
            f"file={path} does not fit its own hash; was it cut or edited since it was written?"
        )
    ids, labels = list(images.ids), list(images.labels)
    _check(ids, labels, images.classes)
    if tuple(images.classes) != subset.classes:
        theirs, ours = (f"{len(c)} classes {list(c[:3])}" for c in (subset.classes, images.classes))
        raise UserError(
            f"file={path} has {theirs}, the dataset {ours}; labels are their indices, so they must "
            "be the same"
        )
    index = {image: i for i, image in enumerate(ids)}
    if missing := [image for image in subset.ids if image not in index]:
        raise UserError(
            f"file={path} names {len(missing)} images that are not in the dataset, such as "
            f"{missing[0]}"
        )
    positions = tuple(index[image] for image in subset.ids)
    for i, label, stamp in zip(positions, subset.labels, subset.stamps, strict=True):
        if labels[i] != label:
            raise UserError(
                f"file={path} labels {ids[i]} as class {label}, the dataset as {labels[i]}"
            )
        if images.stamp(i) != stamp:
            raise UserError(
                f"file={path}: {ids[i]} is another image, or another file of it, than the manifest "
                "names"
            )
    return replace(subset, positions=positions)


def fingerprint(images: Images, stamped: int = 1000) -> str:
    """Hash of a dataset's ids, labels and classes, and of about `stamped` images' stamps."""
    everything = draw(images, "all", stamped=False)
    some = everything.positions[:: max(1, len(everything) // stamped)]
    return _sha256([everything.digest, [images.stamp(i) for i in some]])


def _sha256(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()


def _check(ids: list[str], labels: list[int], classes: Sequence[str]) -> None:
    for image in ids:
        if printable(image) != image:
            raise UserError(f"the name of image {printable(image)} is not UTF-8; rename the file")
    (image, times), *_ = Counter(ids).most_common(1) or [("", 0)]
    if times > 1:
        raise UserError(f"the dataset lists image {image} twice; ids must be unique")
    for image, label in zip(ids, labels, strict=True):
        if not 0 <= label < len(classes):
            raise UserError(
                f"label {label} of image {image} is out of range: the dataset has "
                f"{len(classes)} classes, 0 to {len(classes) - 1}"
            )
