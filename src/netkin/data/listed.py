"""Images in one flat folder, with a file that says what each shows."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image
from scipy.io import loadmat

from netkin.data.decode import decode, stamp
from netkin.data.folder import image_files
from netkin.errors import UserError

GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
DEVKIT = Path("ILSVRC2012_devkit_t12") / "data" / GROUND_TRUTH


@dataclass(frozen=True)
class Listed:
    """The images of a folder that a label file lists.

    Attributes:
        root: the folder; an id is an image's path below it, with "/".
        labels_file: lines of "image label" (or "image,label"), a label being a class's name or its
            index; or ImageNet's `ILSVRC2012_validation_ground_truth.txt`, with the development
            kit's meta.mat beside it: one number a line, for the images in the order of their names.
        class_names: the classes in order, of which labels are names or indices. By default the
            distinct labels of the file: names in sorted order, or indices from 0 to the largest.
    """

    root: str
    labels_file: str
    class_names: Sequence[str] = field(default=())

    @cached_property
    def _pairs(self) -> list[tuple[str, str]]:
        """(id, label as it is written)."""
        root, file = Path(self.root).expanduser(), Path(self.labels_file).expanduser()
        if not root.is_dir():
            raise UserError(f"dataset root {root} is not a folder; expected a folder of images")
        lines = _lines(file)
        if all(line.isdecimal() for line in lines):
            return _ground_truth(root, file, lines)
        pairs = []
        for number, line in enumerate(lines, start=1):
            name, separator, label = line.rpartition("," if "," in line else " ")
            if not separator or not label.strip():
                raise UserError(f"{file}, line {number}: expected 'image label', got {line[:80]!r}")
            pairs.append((name.strip(), label.strip()))
        missing = [name for name, _ in pairs if not (root / name).is_file()]
        if missing:
            raise UserError(
                f"{file} lists {len(missing)} images that are not in {root}, such as {missing[0]}"
            )
        return sorted(pairs)

    @cached_property
    def _classes(self) -> list[str]:
        if self.class_names:
            return [str(name) for name in self.class_names]
        given = {label for _, label in self._pairs}
        if all(label.isdecimal() for label in given):
            return [str(k) for k in range(max(map(int, given)) + 1)]
        return sorted(given)

    @cached_property
    def _labels(self) -> list[int]:
        place = {name: k for k, name in enumerate(self._classes)}
        labels = []
        for image, label in self._pairs:
            k = place.get(label, int(label) if label.isdecimal() else -1)
            if not 0 <= k < len(place):
                raise UserError(
                    f"{self.labels_file}: label {label} of {image} is out of range; expected one "
                    f"of {len(place)} class names, or 0 to {len(place) - 1}"
                )
            labels.append(k)
        return labels

    @property
    def classes(self) -> list[str]:
        return self._classes

    @property
    def ids(self) -> list[str]:
        return [image for image, _ in self._pairs]

    @property
    def labels(self) -> list[int]:
        return self._labels

    def stamp(self, index: int) -> str:
        return stamp(Path(self.root).expanduser() / self._pairs[index][0])

    def load(self, index: int) -> Image.Image:
        name = self._pairs[index][0]
        return decode(name, Path(self.root).expanduser() / name, self.root)


def _lines(file: Path) -> list[str]:
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"the label file {file} cannot be read ({error}); expected lines of 'image label'"
        ) from None
    lines = [line for line in lines if line]
    if not lines:
        raise UserError(f"the label file {file} is empty; expected lines of 'image label'")
    return lines


def _ground_truth(root: Path, file: Path, lines: list[str]) -> list[tuple[str, str]]:
    """ImageNet's own numbering of the classes, 1 to 1000, as WordNet ids."""
    images = [path.relative_to(root).as_posix() for path in image_files(root)]
    if len(images) != len(lines):
        raise UserError(
            f"{file} has {len(lines)} labels, {root} has {len(images)} images; expected as many"
        )
    wnids = _wnids(file.with_name("meta.mat"))
    for line in lines:
        if int(line) not in wnids:
            raise UserError(f"{file}: label {line} is out of range; expected 1 to {len(wnids)}")
    return [(image, wnids[int(line)]) for image, line in zip(images, lines, strict=True)]


def _wnids(meta: Path) -> dict[int, str]:
    """ILSVRC2012_ID to WNID, of the synsets without children."""
    try:
        synsets: Any = loadmat(str(meta), squeeze_me=True)["synsets"]
        rows = [(int(s["ILSVRC2012_ID"]), str(s["WNID"]), int(s["num_children"])) for s in synsets]
    except (OSError, ValueError, KeyError, IndexError, NotImplementedError) as error:
        raise UserError(
            f"{meta} cannot be read ({error}); the ground truth numbers classes in ImageNet's own "
            "order, which the development kit's meta.mat beside it explains"
        ) from None
    return {number: wnid for number, wnid, children in rows if children == 0}
