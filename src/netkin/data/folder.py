"""Images in class folders: root/<class>/.../<image>."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from PIL import Image
from timm.data.readers.img_extensions import get_img_extensions

from netkin.data.decode import decode, stamp
from netkin.errors import UserError


@dataclass(frozen=True)
class Folder:
    """Every image below `root`, labelled by the folder of the first level that it lies in.

    Classes are the folders' names in sorted order; an id is the path below `root`, with "/", or
    the file's name alone with `ids_are="name"`.
    """

    root: str
    ids_are: str = "path"

    @property
    def classes(self) -> list[str]:
        return self._classes

    @cached_property
    def _root(self) -> Path:
        return Path(self.root).expanduser()

    @cached_property
    def _classes(self) -> list[str]:
        root = self._root
        if not root.is_dir():
            raise UserError(f"dataset root {root} is not a folder; expected {root}/<class>/<image>")
        names = sorted(e.name for e in root.iterdir() if e.is_dir() and not hidden(e))
        if len(names) < 2:
            raise UserError(
                f"{root} holds {len(names)} class folders, expected two or more: "
                f"{root}/<class>/<image>; images without class folders need a file of lines "
                "'image label' (dataset.labels, and dataset.train_labels for those of training)"
            )
        return names

    @cached_property
    def _files(self) -> list[tuple[Path, int]]:
        files = []
        for label, name in enumerate(self.classes):
            found = image_files(self._root / name)
            if not found:
                raise UserError(
                    f"class folder {self._root / name} holds no image "
                    f"(of {', '.join(sorted(get_img_extensions(as_set=True)))})"
                )
            files += [(path, label) for path in found]
        return files

    @cached_property
    def _ids(self) -> list[str]:
        if self.ids_are == "name":
            return [path.name for path, _ in self._files]
        return [path.relative_to(self._root).as_posix() for path, _ in self._files]

    @property
    def ids(self) -> list[str]:
        return self._ids

    @property
    def labels(self) -> list[int]:
        return [label for _, label in self._files]

    def stamp(self, index: int) -> str:
        return stamp(self._files[index][0])

    def load(self, index: int) -> Image.Image:
        return decode(self._ids[index], self._files[index][0], self.root)


def image_files(folder: Path) -> list[Path]:
    """All image files below a folder, in the order of their paths; hidden ones are left out."""
    extensions = get_img_extensions(as_set=True)
    found = [
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in extensions
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    return sorted(found, key=lambda path: path.as_posix())


def hidden(path: Path) -> bool:
    """Whether a file or folder is there for a program, such as .ipynb_checkpoints or ._a.png."""
    return path.name.startswith(".")
