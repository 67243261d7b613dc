"""The published 69 (`similarity=sat69`): scores, components, accuracies, parameters; fetched once.

Nothing of it is part of this repository. Each file is fetched into store.dir/published, or read
from similarity.dir.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import polars as pl
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf
from timm.models import split_model_name_tag
from torch.hub import download_url_to_file

from experiments.cli.config import CONF
from experiments.cli.runs import open_store
from experiments.cli.values import resolved
from netkin.analysis import matrix
from netkin.analysis.components import read_components, rows_of
from netkin.analysis.matrix import Matrix
from netkin.errors import UserError, first_line
from netkin.store.files import file_sha256

COPIES = {
    "scores": "sat69_scores.csv",
    "components": "components69.csv",
    "accuracies": "accuracies69.csv",
}
"""What a file may be called in similarity.dir, beside the name that it is published under."""
COLUMNS = (("model", "top1", "param_count"), ("timm", "top1", "params_millions"))
"""Of timm's file of accuracies, and of a copy of a part of it: model, per cent, millions."""


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
    options, files = resolved(given), {}
    own = options["dir"] is not None
    folder = Path(options["dir"] or open_store(config).root / "published").expanduser()
    for key, copy in COPIES.items():
        url, sha256 = options[key]["url"], options[key]["sha256"]
        file = folder / unquote(url.rpartition("/")[2])
        if not file.is_file() and own:
            file, published = folder / copy, file
            if not file.is_file():
                raise UserError(
                    f"similarity.dir={folder} lacks {published.name} (or {copy}): download {url} "
                    "into it, or leave out similarity.dir to have it fetched"
                )
        if not file.is_file():
            try:
                folder.mkdir(parents=True, exist_ok=True)
                download_url_to_file(url, str(file), sha256, progress=False)
            except (OSError, RuntimeError) as error:
                raise UserError(
                    f"{url} cannot be fetched ({first_line(error)}): download it as of commit "
                    f"79f23d1, on a machine with a network, into {folder}, or into a folder that "
                    "you name with similarity.dir=FOLDER"
                ) from None
        if sha256 is not None and (found := file_sha256(file)) != sha256:
            raise UserError(
                f"{file} is not the published file: its SHA-256 is {found}, expected {sha256}; "
                f"remove it, and download {url} again"
            )
        files[key] = file
    return files


def accuracies(
    path: Path, tags: tuple[str, ...]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Top-1 accuracies in [0, 1] and numbers of parameters of models by `name.tag`, [N] each.

    NaN for a model that the file lacks. Raises UserError for a file with other columns.
    """
    try:
        table = pl.read_csv(path, infer_schema=False, glob=False)
        columns = next((names for names in COLUMNS if {*names} <= {*table.columns}), None)
        if columns is None:
            raise UserError(
                f"{path} has the columns {', '.join(table.columns)}; expected "
                f"{', '.join(COLUMNS[0])}, as in timm's results-imagenet.csv"
            )
        name, rate, size = columns
        known = table.select(
            pl.col(name).alias("tag"),
            pl.col(rate).cast(pl.Float64),
            pl.col(size).str.replace_all(",", "").cast(pl.Float64) * 1e6,
        )
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(f"{path} cannot be read ({first_line(error)}); remove it") from None
    found = pl.DataFrame({"tag": tags}).join(known, "tag", how="left", maintain_order="left")
    rates, sizes = (found[:, i].fill_null(np.nan).to_numpy() for i in (1, 2))
    return rates / 100, sizes


def position_by_tag(name: str, names: tuple[str, ...], tags: tuple[str, ...]) -> int | None:
    """The position of a model by its name in the matrix, or by timm's name, old, new or tagged."""
    if name in names:
        return names.index(name)
    known = (i for i, tag in enumerate(tags) if name in (tag, split_model_name_tag(tag)[0]))
    return next(known, None)
