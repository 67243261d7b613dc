"""Decoding: each image once, into every view that the members have, before any model is run."""

import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from netkin.data.decode import UnreadableImage
from netkin.data.images import Images
from netkin.data.views import View
from netkin.errors import UserError, and_more
from netkin.jobs.pool import Advance
from netkin.store.files import write_json, write_tensors
from netkin.store.layout import shard_path
from netkin.store.lease import lease
from netkin.transfer.setting import Setting
from netkin.zoo.member import Member


@dataclass(frozen=True)
class Undecoded:
    """A shard and the views in which it is not stored."""

    shard: int
    views: tuple[View, ...]

    @property
    def name(self) -> str:
        return f"shard {self.shard}"


def undecoded(setting: Setting, members: Sequence[Member]) -> list[Undecoded]:
    """What is missing of the members' views of the subset."""
    entries = {view: setting.view_entry(view) for view in map(setting.view, members)}
    found = []
    for shard in range(len(setting.shards)):
        lacking = [v for v, entry in entries.items() if not shard_path(entry, shard).is_file()]
        found.append(Undecoded(shard, tuple(lacking)))
    return [item for item in found if item.views]


def decode(setting: Setting, item: Undecoded, advance: Advance) -> dict[str, Any]:
    """Store a shard in all views that lack it; returns images and seconds, or that it is `busy`.

    Raises UserError that names every image of the shard that cannot be read.
    """
    files = [shard_path(setting.view_entry(view), item.shard) for view in item.views]
    with lease(setting.store.root, files[0]) as mine:
        if not mine:
            return {"busy": item}
        if all(file.is_file() for file in files):
            advance(len(setting.shards[item.shard]))
            return {"images": 0, "seconds": 0.0}
        return _decode(setting, item, advance)


def _decode(setting: Setting, item: Undecoded, advance: Advance) -> dict[str, Any]:
    start = time.perf_counter()
    transforms = [view.transform() for view in item.views]
    positions = setting.shards[item.shard]

    def seen(i: int) -> list[np.ndarray] | UnreadableImage:
        try:
            image = setting.images.load(setting.subset.positions[i])
            return [np.asarray(transform(image)) for transform in transforms]
        except UnreadableImage as error:
            return error
        finally:
            advance(1)

    with ThreadPoolExecutor(setting.loader.decode_threads) as pool:  # PIL lets go of the GIL
        found = list(pool.map(seen, positions))
    bad = [error for error in found if isinstance(error, UnreadableImage)]
    if bad:
        raise unreadable(bad)
    shown = [images for images in found if not isinstance(images, UnreadableImage)]
    for view, images in zip(item.views, zip(*shown, strict=True), strict=True):
        entry = setting.view_entry(view).claim()
        pixels = torch.from_numpy(np.stack(images))
        write_tensors(shard_path(entry, item.shard), {"pixels": pixels})
    return {"images": len(positions), "seconds": time.perf_counter() - start}


def unreadable(errors: Sequence[UnreadableImage]) -> UserError:
    """One error for some images."""
    if len(errors) == 1:
        return errors[0]
    named = and_more(f"{error.image_id} ({error.reason})" for error in errors)
    return UserError(
        f"{len(errors)} images are unreadable: {named}; mend or remove them, or leave such "
        "images out with dataset.on_error=skip"
    )


def skipping(setting: Setting, advance: Advance) -> Setting:
    """The setting without images that cannot be read; tries each once, and remembers."""
    notes = setting.stored.path / "unreadable.json"  # a mended file is another subset
    if notes.is_file():
        bad = json.loads(notes.read_text())
        advance(len(setting.subset))
    else:
        bad = unreadable_images(setting.images, setting.subset.positions, advance)
        write_json(notes, bad)
    if len(bad) == len(setting.subset):
        image, reason = next(iter(bad.items()))
        raise UserError(f"none of the {len(bad)} images can be read, such as {image} ({reason})")
    return replace(setting, subset=setting.subset.without(bad)) if bad else setting


def unreadable_images(images: Images, positions: Sequence[int], advance: Advance) -> dict[str, str]:
    """Which of some images cannot be read: id to reason. Tries each."""

    def reason(position: int) -> tuple[str, str] | None:
        try:
            images.load(position)
        except UnreadableImage as error:
            return error.image_id, error.reason
        finally:
            advance(1)
        return None

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(found for found in pool.map(reason, positions) if found)
