"""Decoding: each image once, into every view of the members, before any model is run."""

import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch

from netkin.data.decode import UnreadableImage
from netkin.data.images import Images
from netkin.data.views import View
from netkin.errors import Unreadable, UserError, and_more
from netkin.jobs.pool import Advance
from netkin.jobs.results import Result
from netkin.passes.setting import Setting
from netkin.store.files import write_json, write_tensors
from netkin.store.layout import shard_path
from netkin.store.lease import lease
from netkin.zoo.member import Member


@dataclass(frozen=True)
class Undecoded:
    """A shard and the views in which it is not stored."""

    shard: int
    views: tuple[View, ...]

    @property
    def name(self) -> str:
        """What the display calls it."""
        return f"shard {self.shard}"


def undecoded(setting: Setting, members: Sequence[Member]) -> list[Undecoded]:
    """The shards of the members' views of the subset that are not stored."""
    entries = {view: setting.view_entry(view) for view in map(setting.view, members)}
    items = []
    for shard in range(len(setting.shards)):
        missing = [v for v, entry in entries.items() if not shard_path(entry, shard).is_file()]
        items.append(Undecoded(shard, tuple(missing)))
    return [item for item in items if item.views]


def decode(setting: Setting, item: Undecoded, advance: Advance) -> Result:
    """Store a shard in all views that lack it, unless another process does.

    Raises UserError that names every image of the shard that cannot be read.
    """
    files = [shard_path(setting.view_entry(view), item.shard) for view in item.views]
    with lease(setting.store.root, files[0]) as held:
        if not held:
            return Result(remaining=item)
        if all(file.is_file() for file in files):
            advance(len(setting.shards[item.shard]))
            return Result()
        return _decode(setting, item, advance)


def _decode(setting: Setting, item: Undecoded, advance: Advance) -> Result:
    start = time.perf_counter()
    transforms = [view.transform() for view in item.views]
    positions = setting.shards[item.shard]

    def views_of(i: int) -> list[np.ndarray] | UnreadableImage:
        try:
            image = setting.images.load(setting.subset.positions[i])
            return [np.asarray(transform(image)) for transform in transforms]
        except UnreadableImage as error:
            return error
        finally:
            advance(1)

    with ThreadPoolExecutor(setting.loader.decode_threads) as pool:  # PIL releases the GIL
        outcomes = list(pool.map(views_of, positions))
    errors = [error for error in outcomes if isinstance(error, UnreadableImage)]
    if errors:
        raise unreadable(errors)
    decoded = [images for images in outcomes if not isinstance(images, UnreadableImage)]
    for view, images in zip(item.views, zip(*decoded, strict=True), strict=True):
        entry = setting.view_entry(view).claim()
        pixels = torch.from_numpy(np.stack(images))
        write_tensors(shard_path(entry, item.shard), {"pixels": pixels})
    return Result(images=len(positions), seconds=time.perf_counter() - start)


def unreadable(errors: Sequence[UnreadableImage]) -> Unreadable:
    """One error for some images."""
    if len(errors) == 1:
        return errors[0]
    images = and_more([f"{error.image_id} ({error.reason})" for error in errors])
    return Unreadable(
        f"{len(errors)} images are unreadable: {images}; repair or remove them, or leave out "
        "images that cannot be read"
    )


def skipping(setting: Setting, advance: Advance) -> Setting:
    """The setting without images that cannot be read. Each is tried once; the store keeps which.

    Raises UserError where none can be read.
    """
    file = setting.stored.path / "unreadable.json"  # a repaired image makes another subset
    if file.is_file():
        bad = json.loads(file.read_text())
        advance(len(setting.subset))
    else:
        bad = unreadable_images(setting.images, setting.subset.positions, advance)
        write_json(file, bad)
    if len(bad) == len(setting.subset):
        image, reason = next(iter(bad.items()))
        raise UserError(f"none of the {len(bad)} images can be read, such as {image} ({reason})")
    return replace(setting, subset=setting.subset.without(bad)) if bad else setting


def unreadable_images(images: Images, positions: Sequence[int], advance: Advance) -> dict[str, str]:
    """Which of some images cannot be read: id to reason. Each is tried."""

    def reason(position: int) -> tuple[str, str] | None:
        try:
            images.load(position)
        except UnreadableImage as error:
            return error.image_id, error.reason
        finally:
            advance(1)
        return None

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(problem for problem in pool.map(reason, positions) if problem)
