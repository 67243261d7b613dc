"""Decoding: each image once, into every view of the models, before any model is run."""

import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from netkin.data.images import Images, UnreadableImage
from netkin.errors import Unreadable, UserError, and_more
from netkin.jobs.pool import Advance, Result
from netkin.passes import Item
from netkin.results import Results
from netkin.runner import Runner
from netkin.store.files import damaged, write_json
from netkin.store.layout import shard_file
from netkin.store.lease import lease


def decode(results: Results, runner: Runner, item: Item, advance: Advance) -> Result:
    """Store a shard in all views that lack it, unless another process does.

    Raises UserError that names every image of the shard that cannot be read.
    """
    files = [shard_file(results.view_folder(view), item.shard) for view in item.todo]
    with lease(results.store.root, files[0]) as held:
        if not held:
            return Result(remaining=item)
        if all(file.is_file() for file in files):
            advance(len(results.evaluation.shards[item.shard]))
            return Result()
        return _decode(results, runner, item, advance)


def _decode(results: Results, runner: Runner, item: Item, advance: Advance) -> Result:
    start, evaluation = time.perf_counter(), results.evaluation
    transforms = [view.transform() for view in item.todo]
    positions = evaluation.shards[item.shard]

    def views_of(i: int) -> list[np.ndarray] | UnreadableImage:
        try:
            image = evaluation.images.load(evaluation.subset.positions[i])
            return [np.asarray(transform(image)) for transform in transforms]
        except UnreadableImage as error:
            return error
        finally:
            advance(1)

    with ThreadPoolExecutor(runner.loader.decode_threads) as pool:  # PIL releases the GIL
        found = list(pool.map(views_of, positions))
    if errors := [error for error in found if isinstance(error, UnreadableImage)]:
        raise unreadable(errors)
    decoded = [images for images in found if not isinstance(images, UnreadableImage)]
    for view, images in zip(item.todo, zip(*decoded, strict=True), strict=True):
        folder = results.view_folder(view).claim()
        pixels = torch.from_numpy(np.stack(images))
        folder.write(shard_file(folder, item.shard), {"pixels": pixels})
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


def readable(results: Results, advance: Advance) -> Results:
    """The results without images that cannot be read. Each is tried once; the store keeps which.

    Raises UserError where none can be read.
    """
    subset = results.evaluation.subset
    file = results.folder / "unreadable.json"  # a repaired image makes another subset
    if file.is_file():
        try:
            bad = dict(json.loads(file.read_text()))
            assert bad.keys() <= set(subset.ids), "it lists other images"
        except (OSError, ValueError, TypeError, AssertionError) as error:
            raise damaged(file, error) from None
        advance(len(subset))
    else:
        bad = unreadable_images(results.evaluation.images, subset.positions, advance)
        write_json(file, bad)
    if len(bad) == len(subset):
        image, reason = next(iter(bad.items()))
        raise UserError(f"none of the {len(bad)} images can be read, such as {image} ({reason})")
    return results.under(subset=subset.without(bad)) if bad else results


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
