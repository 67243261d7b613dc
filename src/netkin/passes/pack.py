"""A pack of images for any classifier in any framework, and the predictions that come back.

    <folder>/manifest.json, README.txt, images.csv (image_id, file, sha256)
    <folder>/images/clean-32px/00012-3f9ac1.png       the images as landmarks see them
    <folder>/images/noise-32px/00012-77e0b2.png       under noise of the attack's eps: the control
    <folder>/images/vit_ti/00012-0b81dd.png           adversarial images of the landmark vit_ti

An image_id is a file's path below images/ without .png. It ends with a hash of the pixels, so that
predictions for another pack are noticed. Labels are not in the pack. Predictions are a CSV file
with the columns image_id and prediction, an index of the classes in the manifest or a name of one.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from netkin.data.tables import read_text
from netkin.data.views import View
from netkin.errors import OutputsError, UserError, and_more, near
from netkin.model import Model
from netkin.passes.predict import noised
from netkin.results import Results
from netkin.store import files, folder

HOW = """Run your classifier on every PNG file below images/, and write a CSV file with the columns
image_id (the file's path below images/ without .png; images.csv lists them all) and prediction (the
index of the predicted class in "classes" of manifest.json, from 0, or its name).

The files are what a model sees after resize and crop, 8-bit RGB. Read their pixels as they are:
convert to your model's data type, normalise as its training did, and do not crop. If it needs
another input size, resize the whole image (bilinear, antialiased). Lossy compression, random
augmentation or another order of the channels would destroy what is measured.
"""
CLEAN, NOISE, ADVERSARIAL = "clean", "noise", "adversarial"
"""Kinds of images."""
write = partial(files.write, error_type=OutputsError, kind="folder")


@dataclass(frozen=True)
class Images:
    """The images of one folder and one shard.

    Attributes:
        name: of the folder.
        kind: clean, noise or adversarial.
        index: [n] their positions in the subset.
        pixels: [n, 3, H, W] uint8.
    """

    name: str
    kind: str
    index: NDArray[np.intp]
    pixels: Tensor

    @property
    def ids(self) -> list[str]:
        """The image_id of each."""
        hashes = [hashlib.sha256(image.numpy().tobytes()).hexdigest()[:6] for image in self.pixels]
        return [f"{self.name}/{i:05d}-{h}" for i, h in zip(self.index, hashes, strict=True)]


def view_names(landmarks: Sequence[Model]) -> dict[View, str]:
    """The distinct views of the landmarks, and a name of each for folders."""
    views = list(dict.fromkeys(member.view for member in landmarks))
    sizes = [view.input_size for view in views]
    return {
        view: f"{view.input_size}px"
        + (f"-{sizes[:i].count(view.input_size) + 1}" if sizes.count(view.input_size) > 1 else "")
        for i, view in enumerate(views)
    }


def images(results: Results, landmarks: Sequence[Model]) -> Iterator[Images]:
    """All images of a pack, shard by shard.

    Raises UserError where adversarial images are not stored on the 8-bit grid, which PNG files
    need, or where a landmark's name is that of a folder of the pack.
    """
    if results.evaluation.dtype != "uint8":
        raise UserError(f"a pack of PNG files needs dtype=uint8, got {results.evaluation.dtype}")
    views, evaluation = view_names(landmarks), results.evaluation
    ours = {f"{kind}-{name}" for name in views.values() for kind in (CLEAN, NOISE)}
    if clash := sorted(ours & {folder(member.name) for member in landmarks}):
        raise UserError(f"a landmark has the name of a folder of the pack: {', '.join(clash)}")
    for view, name in views.items():
        for shard, positions in enumerate(evaluation.shards):
            clean, index = results.pixels(view, shard), np.array(positions)
            yield Images(f"{CLEAN}-{name}", CLEAN, index, clean)
            if evaluation.has_noise:
                # As of a model with the view's name.
                noisy = noised(evaluation, clean, evaluation.keys(name, positions))
                yield Images(f"{NOISE}-{name}", NOISE, index, noisy)
    for member in landmarks:
        for shard in range(len(evaluation.shards)):
            pixels, index = results.adversarial(member, shard)
            yield Images(folder(member.name), ADVERSARIAL, index.numpy(), pixels)


def export(
    results: Results,
    landmarks: Sequence[Model],
    to: Path,
    advance: Callable[[int], None] = lambda n: None,
) -> pl.DataFrame:
    """Write a pack into a new or empty folder, or into that of the same pack, finished or not.

    Args:
        results: whose clean images, and whose landmarks' adversarial images, are in the store.
        landmarks: the members whose adversarial images are packed.
        to: the folder.
        advance: called with the number of images written.

    Returns a row a folder of images: folder, kind, images, file_bytes. Raises UserError where `to`
    has other files, OutputsError where it cannot be written.
    """
    manifest, rows, listed = _manifest(results, landmarks), {}, []
    if not _holds(to, manifest) and to.is_dir() and any(to.iterdir()):
        raise UserError(f"{to} is not empty; name a new folder for the pack")
    _write_json(to / "manifest.json", manifest)  # the first of its files
    write(to / "README.txt", lambda f: f.write_text(HOW))
    for part in images(results, landmarks):
        row = rows.setdefault(
            part.name, {"folder": part.name, "kind": part.kind, "images": 0, "file_bytes": 0}
        )
        for image_id, pixels in zip(part.ids, part.pixels, strict=True):
            file = to / "images" / f"{image_id}.png"
            picture = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
            write(file, lambda f, p=picture: p.save(f, "PNG"))
            listed.append((image_id, f"images/{image_id}.png", files.file_sha256(file)))
            row["images"] += 1
            row["file_bytes"] += file.stat().st_size
        advance(len(part.index))
    table = pl.DataFrame(listed, schema=["image_id", "file", "sha256"], orient="row")
    write(to / "images.csv", table.write_csv)
    _write_json(to / "manifest.json", {**manifest, "folders": list(rows.values())})
    return pl.DataFrame(list(rows.values()))


def _holds(to: Path, manifest: dict) -> bool:
    """Whether a folder holds a pack of this manifest, finished or not."""
    stored = files.read_json(to / "manifest.json")
    stored.pop("folders", None)
    return stored == json.loads(json.dumps(manifest))


def _write_json(file: Path, content: dict) -> None:
    write(file, lambda f: f.write_text(json.dumps(content, indent=2) + "\n"))


def _manifest(results: Results, landmarks: Sequence[Model]) -> dict:
    """What a pack is of; its folders of images are added when all are written."""
    views, evaluation = view_names(landmarks), results.evaluation
    return {
        "dataset": evaluation.task.dataset,
        "subset_sha256": evaluation.subset.digest,
        "images": len(evaluation.subset),
        "classes": list(evaluation.images.classes),
        "attack": {"name": evaluation.attack.name, **evaluation.attack.identity},
        "eps": evaluation.attack.eps,
        "eps_unit": "pixels in [0, 1]",
        "views": {name: asdict(view) for view, name in views.items()},
        "landmarks": {m.name: views[m.view] for m in landmarks},
        "made_by": {m.name: results.source_digest(m) for m in landmarks},
        "predictions": "a CSV file with the columns image_id and prediction",
        "preprocessing": " ".join(HOW.split()),
    }


@dataclass(frozen=True)
class Predictions:
    """A classifier's predictions on a pack of I images, from m landmarks.

    Attributes:
        clean: [m, I] the class predicted for each clean image, as each landmark sees it.
        noise: [m, I] under noise; None where the attack has no eps.
        attacked: [m, I] for each adversarial image; -1 where the landmark has none, as it errs on
            the clean image.
    """

    clean: NDArray[np.intp]
    noise: NDArray[np.intp] | None
    attacked: NDArray[np.intp]


def read_predictions(results: Results, landmarks: Sequence[Model], path: str | Path) -> Predictions:
    """The predictions in a CSV file, in any order of rows.

    Raises UserError, in one line, for a file that cannot be read, lacks a column, an image or a
    class, has an image twice, or is of another pack.
    """
    given = read_table(path, results.evaluation.images.classes)
    wanted = {
        image: (part.name, i)
        for part in images(results, landmarks)
        for image, i in zip(part.ids, part.index.tolist(), strict=True)
    }
    if foreign := [image for image in given if image not in wanted]:
        hint = near(foreign[0], wanted, 1) if len(wanted) < 100_000 else ""
        raise UserError(
            f"{path}: {len(foreign)} of its {len(given)} image_ids are not in this pack: "
            f"{and_more(foreign, 3)}{hint}; use the images, landmarks and attack that the pack was "
            "exported with"
        )
    if missing := [image for image in wanted if image not in given]:
        raise UserError(
            f"{path} lacks {len(missing)} of the {len(wanted)} image_ids of the pack: "
            f"{and_more(missing, 3)}; run the classifier on every image in images.csv"
        )
    found: dict[str, NDArray[np.intp]] = {}
    for image, (name, i) in wanted.items():
        values = found.setdefault(name, np.full(len(results.evaluation.subset), -1, dtype=np.intp))
        values[i] = given[image]
    views = view_names(landmarks)

    def of_views(kind: str) -> NDArray[np.intp]:
        return np.stack([found[f"{kind}-{views[member.view]}"] for member in landmarks])

    return Predictions(
        of_views(CLEAN),
        of_views(NOISE) if results.evaluation.has_noise else None,
        np.stack([found[folder(member.name)] for member in landmarks]),
    )


def read_table(path: str | Path, classes: Sequence[str]) -> dict[str, int]:
    """image_id to the index of the predicted class, from a CSV file.

    Raises UserError for a file that cannot be read, lacks a column, has an image twice, or has
    another class.
    """
    path = Path(path).expanduser()
    table = read_text(path, ("image_id", "prediction"))
    ids = table["image_id"].str.strip_suffix(".png").str.strip_prefix("images/")
    if ids.is_duplicated().any():
        twice = ids.filter(ids.is_duplicated()).unique(maintain_order=True)
        raise UserError(f"{path} has {len(twice)} image_ids more than once: {and_more(twice, 3)}")
    texts = table["prediction"].str.strip_suffix(".0")
    names = {name: i for i, name in enumerate(classes)}
    known = {**names, **{str(i): i for i in range(len(classes))}}
    wrong = [(i, t) for i, t in zip(ids, texts, strict=True) if t not in known]
    if wrong:
        raise UserError(
            f"{path}: the prediction of {wrong[0][0]} is {wrong[0][1]!r}, expected an index from 0 "
            f"to {len(classes) - 1} or the name of a class ({len(wrong)} such rows)"
        )
    return {i: known[t] for i, t in zip(ids, texts, strict=True)}
