"""Datasets that timm reads: Hugging Face datasets, WebDataset shards, tar files."""

import hashlib
import tarfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image
from timm.data.readers import create_reader
from timm.data.readers.reader_image_in_tar import extract_tarinfos

from netkin.data.decode import decode, stamp
from netkin.errors import UserError

PREFIXES = ("hfds/", "wds/")
SPLITS = {"val": ("val", "validation", "test"), "train": ("train",)}
"""What a split's folder may be called."""
ALL_SPLITS = tuple(name for names in SPLITS.values() for name in names)


def is_timm(root: str) -> bool:
    """Whether timm's readers take this root: hfds/..., wds/..., tar files.

    A folder with other folders in it has its images there, whatever archives lie beside them.
    """
    path = Path(root).expanduser()
    if root.startswith(PREFIXES) or path.suffix == ".tar":
        return True
    if not path.is_dir():
        return False
    entries = [entry for entry in path.iterdir() if not entry.name.startswith(".")]
    return any(e.suffix == ".tar" for e in entries) and not any(e.is_dir() for e in entries)


def open_timm(
    root: str, split: str, ids_are: str = "path", class_names: Sequence[str] = ()
) -> "Read | Tarred":
    """A dataset through timm's reader.

    Args:
        root: "hfds/<name or folder>" (Hugging Face datasets), "wds/<folder>" (WebDataset shards
            with an info file), or a tar file or folder of tar files with one folder a class.
        split: of hfds and wds: a split's name, or for wds a pattern such as "val-{00..09}.tar".
        ids_are: "path" within the dataset, or the file's "name" alone.
        class_names: of hfds and wds, in place of the dataset's own, in its order.

    Raises UserError when the reader's package is missing or it cannot read the root.
    """
    prefix, _, rest = root.partition("/")
    try:
        if prefix == "hfds":
            return Read(create_reader(root, split=split), ids_are, tuple(class_names))
        if prefix == "wds":
            reader: Any = create_reader("wds/", root=str(Path(rest).expanduser()), split=split)
            shards = [Path(reader.root) / name for name in reader.split_info.filenames]
            places, names = _webdataset(shards)
            return Tarred(places, tuple(class_names) or names)
        return Tarred(*_class_tars(Path(root).expanduser(), split, ids_are))
    except UserError:
        raise
    except ImportError as error:
        package = {"hfds": "datasets", "wds": "webdataset"}[prefix]
        raise UserError(
            f"{root} cannot be read ({error}); reading {prefix}/ takes `pip install {package}`"
        ) from None
    except Exception as error:  # each reader's library has its own
        raise UserError(
            f"{root} (split {split}) cannot be read: {' '.join(str(error).split())[:300]}"
        ) from None


@dataclass(frozen=True)
class Read:
    """A timm reader with random access. Ids are file names, or a hash of the bytes without one."""

    reader: Any
    ids_are: str = "path"
    class_names: tuple[str, ...] = ()

    @cached_property
    def _ids(self) -> list[str]:
        times: Counter[str] = Counter()
        ids = []
        for i in range(len(self.reader)):
            name, named = self._id(i)
            times[name] += 1
            # Equal bytes without a name are told apart by how often they came before.
            ids.append(name if named or times[name] == 1 else f"{name}-{times[name]}")
        return ids

    def _id(self, index: int) -> tuple[str, bool]:
        """(id, whether it is a file's name)."""
        name = self.reader.filename(index)
        if not name:
            return hashlib.sha256(self._bytes(index)).hexdigest()[:20], False
        path = Path(name)
        # A file system's absolute path would differ between machines.
        parts = path.parts[-2:] if path.is_absolute() else path.parts
        return (path.name if self.ids_are == "name" else "/".join(parts)), True

    @cached_property
    def _labels(self) -> list[int]:
        return [int(label) for label in self.reader.iter_targets()]

    @cached_property
    def _classes(self) -> list[str]:
        if self.class_names:
            return list(self.class_names)
        names = self.reader.class_to_idx
        if not names:
            return [str(k) for k in range(max(self._labels) + 1)]
        return sorted(names, key=names.__getitem__)

    @property
    def classes(self) -> list[str]:
        return self._classes

    @property
    def ids(self) -> list[str]:
        return self._ids

    @property
    def labels(self) -> list[int]:
        return self._labels

    def _bytes(self, index: int) -> bytes:
        with self.reader[index][0] as file:
            return file.read()

    def stamp(self, index: int) -> str:
        return stamp(self._bytes(index))

    def load(self, index: int) -> Image.Image:
        return decode(self._ids[index], lambda: self._bytes(index))


@dataclass(frozen=True)
class Place:
    """Where an image lies in a tar file: its bytes from `offset` on."""

    image_id: str
    label: int
    file: Path
    offset: int
    size: int


@dataclass(frozen=True)
class Tarred:
    """Images inside tar files, indexed once and then read at random."""

    places: tuple[Place, ...]
    names: tuple[str, ...]

    @property
    def classes(self) -> list[str]:
        return list(self.names)

    @property
    def ids(self) -> list[str]:
        return [place.image_id for place in self.places]

    @property
    def labels(self) -> list[int]:
        return [place.label for place in self.places]

    def _bytes(self, index: int) -> bytes:
        place = self.places[index]
        with place.file.open("rb") as file:
            file.seek(place.offset)
            return file.read(place.size)

    def stamp(self, index: int) -> str:
        return stamp(self._bytes(index))

    def load(self, index: int) -> Image.Image:
        place = self.places[index]
        return decode(place.image_id, lambda: self._bytes(index), str(place.file))


def _class_tars(root: Path, split: str, ids_are: str) -> tuple[tuple[Place, ...], tuple[str, ...]]:
    """As timm indexes them: class folders in a tar, tars of classes, or tars within a tar.

    A folder's <split>.tar, or what lies below <split>/ in a tar, is that split; without such
    names everything is what is compared on, and there is nothing to train on.
    """
    names = SPLITS.get(split, (split,))
    own = [root / f"{name}.tar" for name in names if (root / f"{name}.tar").is_file()]
    if own:
        return _class_tars(own[0], "", ids_are)
    # Its cache of the index is a pickle beside the data.
    found: Any = extract_tarinfos(str(root), cache_tarinfo=False)
    samples, labels, classes, _ = found
    paths = []
    for entry, parent, child in samples:
        parts = [p for p in (parent, child and child.name) if p]
        paths.append("/".join([*(str(Path(p).with_suffix("")) for p in parts), entry.name]))
    of = [next((p for p in Path(path).parts if p in ALL_SPLITS), None) for path in paths]
    if any(of) and split and not any(name in names for name in of):
        raise UserError(f"{root} holds no folder {' or '.join(names)}")
    if not any(of) and split == "train":
        raise UserError(
            f"{root} has no train/ beside val/ to train members on: name a folder of train.tar "
            "and val.tar, or members with a checkpoint"
        )
    places = []
    for (entry, parent, child), label, path, part in zip(samples, labels, paths, of, strict=True):
        if split and part is not None and part not in names:
            continue
        places.append(
            Place(
                Path(path).name if ids_are == "name" else path,
                int(label),
                root / parent if parent else root,
                entry.offset_data + (child.offset_data if child else 0),
                entry.size,
            )
        )
    return tuple(places), tuple(sorted(classes, key=classes.__getitem__))


def _webdataset(shards: Sequence[Path]) -> tuple[tuple[Place, ...], tuple[str, ...]]:
    """Shards of <key>.jpg (jpeg, png, webp) and <key>.cls; an id is "<shard's name>/<key>".

    timm streams such shards; scores need to find an image again.
    """
    places = []
    for shard in shards:
        images: dict[str, tarfile.TarInfo] = {}
        labels: dict[str, int] = {}
        with tarfile.open(shard) as tar:
            for entry in tar:
                key, _, kind = entry.name.rpartition(".")
                if kind.lower() in ("jpg", "jpeg", "png", "webp"):
                    images[key] = entry
                elif kind == "cls":
                    content = tar.extractfile(entry)
                    assert content is not None
                    labels[key] = int(content.read())
        for key, entry in images.items():
            if key not in labels:
                raise UserError(f"{shard}: image {key} has no label, {key}.cls")
            image_id = f"{shard.stem}/{key}"
            places.append(Place(image_id, labels[key], shard, entry.offset_data, entry.size))
    if not places:
        raise UserError(f"there is no image in {', '.join(map(str, shards)) or 'no shard'}")
    classes = max(place.label for place in places) + 1
    return tuple(places), tuple(map(str, range(classes)))
