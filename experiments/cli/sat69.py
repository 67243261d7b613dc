"""The published 69 (`similarity=sat69`): scores, components, accuracies, parameters; fetched once.

Nothing of it is part of this repository. Each file is fetched into store.dir/published, or read
from similarity.dir.
"""

import hashlib
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import polars as pl
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf
from timm.models import split_model_name_tag

from experiments.cli.mistakes import CONF
from experiments.cli.runs import open_store
from experiments.cli.values import resolved
from netkin.analysis import matrix
from netkin.analysis.components import read_components, rows_of
from netkin.analysis.matrix import Matrix
from netkin.errors import UserError, first_line
from netkin.store.files import file_sha256, write

COPIES = {
    "scores": "sat69_scores.csv",
    "components": "components69.csv",
    "accuracies": "accuracies69.csv",
}
"""What a file may be called in similarity.dir, beside the name that it is published under."""
COLUMNS = (("model", "top1", "param_count"), ("timm", "top1", "params_millions"))
"""Of timm's file of accuracies, and of a copy of a part of it: model, per cent, millions."""
TIMEOUT = 30.0
"""Seconds without an answer after which a server counts as out of reach."""


@dataclass(frozen=True)
class Published:
    """What is known of the N models of a published matrix beside their scores.

    Attributes:
        components: a row a model, in the matrix's order.
        accuracy: [N], top-1 on ImageNet's validation set in [0, 1]; NaN where unknown.
        params: [N], number of parameters; NaN where unknown.
        timm: [N], `name.tag` of the weights.
    """

    components: pl.DataFrame
    accuracy: NDArray[np.float64]
    params: NDArray[np.float64]
    timm: tuple[str, ...]


def load(config: DictConfig) -> tuple[Matrix, Published]:
    """The matrix of `similarity=sat69`, and what comes with it.

    Raises UserError for a file that cannot be had or is not the published one.
    """
    files = find(config)
    scores = matrix.read(files["scores"])
    table = rows_of(read_components(files["components"]), scores.names, str(files["components"]))
    known = pinned()
    tags = tuple(str(known[name]["timm"]) for name in scores.names)
    accuracy, params = accuracies(files["accuracies"], tags)
    return scores, Published(table, accuracy, params, tags)


def pinned() -> dict[str, Any]:
    """The paper's names of the 69, each with its member's fields; names of old versions of timm."""
    names = OmegaConf.to_container(OmegaConf.load(CONF / "model" / "imagenet69.yaml"))
    assert isinstance(names, dict)
    return names["known"]


def find(config: DictConfig) -> dict[str, Path]:
    """The paths of the three files by key; what is not there is fetched, and all are checked."""
    given = config.similarity or OmegaConf.load(CONF / "similarity" / "sat69.yaml").similarity
    options = resolved(given)
    names = {key: unquote(options[key]["url"].rpartition("/")[2]) for key in COPIES}
    folder = Path(options["dir"] or open_store(config).root / "published").expanduser()
    files = {key: folder / name for key, name in names.items()}
    for key, copy in COPIES.items():
        if options["dir"] is not None and not files[key].is_file():
            files[key] = folder / copy
    absent = [key for key in COPIES if not files[key].is_file()]
    if absent and options["dir"] is not None:
        urls = " ".join(options[key]["url"] for key in absent)
        lacking = ", ".join(f"{names[key]} (or {COPIES[key]})" for key in absent)
        raise UserError(
            f"similarity.dir={folder} lacks {lacking}: download {urls} into it, or leave out "
            "similarity.dir to have them fetched"
        )
    for key in absent:
        try:
            fetch(options[key]["url"], files[key], options[key]["sha256"])
        except OSError as error:
            left = [each for each in absent if not files[each].is_file()]
            urls = " ".join(options[each]["url"] for each in left)
            raise UserError(
                f"the published files cannot be fetched ({first_line(error)}): download {urls} on "
                f"a machine with a network into {folder}, or into a folder that you name with "
                "similarity.dir=FOLDER"
            ) from None
    for key, file in files.items():
        sha256 = options[key]["sha256"]
        if sha256 is not None and (found := file_sha256(file)) != sha256:
            raise UserError(
                f"{file} is not the published file: its SHA-256 is {found}, expected {sha256}; "
                f"remove it, and download {options[key]['url']} again"
            )
    return files


def fetch(url: str, file: Path, sha256: str | None = None) -> None:
    """Download a file whole, or not at all; its SHA-256 is checked before it is stored.

    Raises OSError where the server is out of reach, UserError for another file.
    """
    with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
        data = answer.read()
    found = hashlib.sha256(data).hexdigest()
    if sha256 is not None and found != sha256:
        raise UserError(
            f"{url} has changed: its SHA-256 is {found}, expected {sha256}; download the file as "
            "at commit 79f23d1 into a folder that you name with similarity.dir=FOLDER"
        )
    write(file, lambda temporary: temporary.write_bytes(data))


def accuracies(
    path: Path, tags: tuple[str, ...]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Top-1 accuracies in [0, 1] and numbers of parameters of models by `name.tag`, [N] each.

    NaN for a model that the file lacks. Raises UserError for a file with other columns.
    """
    try:
        table = pl.read_csv(path, infer_schema=False, glob=False)
        columns = next(names for names in COLUMNS if {*names} <= {*table.columns})
        name, top1, params = (table[column] for column in columns)
        values = {
            model: (float(rate) / 100, 1e6 * float(size.replace(",", "")))
            for model, rate, size in zip(name, top1, params, strict=True)
        }
    except (pl.exceptions.PolarsError, OSError, ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({first_line(error)}); remove it") from None
    except StopIteration:
        raise UserError(
            f"{path} has the columns {', '.join(table.columns)}; expected "
            f"{', '.join(COLUMNS[0])}, as in timm's results-imagenet.csv"
        ) from None
    rows = np.array([values.get(tag, (np.nan, np.nan)) for tag in tags])
    return rows[:, 0], rows[:, 1]


def place(name: str, names: tuple[str, ...], tags: tuple[str, ...]) -> int | None:
    """The position of a model by its name in the matrix, or by timm's name, old, new or tagged."""
    if name in names:
        return names.index(name)
    for i, tag in enumerate(tags):
        if name in (tag, split_model_name_tag(tag)[0]):
            return i
    return None
