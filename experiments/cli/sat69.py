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

from experiments.cli.config import CONF
from experiments.cli.runs import open_store
from experiments.cli.values import resolved
from netkin.analysis import matrix
from netkin.analysis.components import read_components, rows_of
from netkin.analysis.matrix import Matrix
from netkin.data.tables import read_text
from netkin.errors import UserError, first_line
from netkin.store.files import file_sha256

COPIES = {
    "scores": "sat69_scores.csv",
    "components": "components69.csv",
    "accuracies": "accuracies69.csv",
}
"""What a file may be called, beside the name that it is published under."""


@dataclass(frozen=True)
class Published:
    """What is known of the N models of a published matrix beside their scores, in its order."""

    components: pl.DataFrame  # a row a model
    accuracy: NDArray[np.float64]  # [N], top-1 on ImageNet's validation set in [0, 1], or NaN
    params: NDArray[np.float64]  # [N], number of parameters, or NaN
    timm: tuple[str, ...]  # [N], name.tag of the weights

    @property
    def pages(self) -> dict[str, str]:
        """timm's pages about the weights, by the models' names; one has none."""
        pairs = zip(self.components.to_series(0), self.timm, strict=True)
        return {name: f"https://huggingface.co/timm/{tag}" for name, tag in pairs if "." in tag}


def load(config: DictConfig) -> tuple[Matrix, Published]:
    """The matrix of `similarity=sat69`, and what comes with it.

    Raises UserError for a file that cannot be had or is not the published one.
    """
    files = find(config)
    scores, known = matrix.read(files["scores"]), pinned()
    table = rows_of(read_components(files["components"]), scores.names, str(files["components"]))
    tags = tuple(str(known[name]["timm"]) for name in scores.names)
    return scores, Published(table, *accuracies(files["accuracies"], tags), tags)


def pinned() -> dict[str, Any]:
    """The paper's names of the 69, each with its member's fields; names of old versions of timm."""
    names = OmegaConf.to_container(OmegaConf.load(CONF / "model" / "imagenet69.yaml"))
    assert isinstance(names, dict)
    return names["known"]


def find(config: DictConfig) -> dict[str, Path]:
    """The paths of the three files by key; what is not there is fetched, and all are checked."""
    given = config.similarity or OmegaConf.load(CONF / "similarity" / "sat69.yaml").similarity
    options, files = resolved(given), {}
    folder = Path(options["dir"] or open_store(config).root / "published").expanduser()
    for key, copy in COPIES.items():
        url, sha256 = options[key]["url"], options[key]["sha256"]
        names = (unquote(url.rpartition("/")[2]), copy)
        file = next((folder / name for name in names if (folder / name).is_file()), None)
        if file is None and options["dir"] is not None:
            raise UserError(
                f"similarity.dir={folder} lacks {names[0]} (or {copy}): download {url} into it, or "
                "leave out similarity.dir to have it fetched"
            )
        if file is None:
            from torch.hub import download_url_to_file

            file = folder / names[0]
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


def accuracies(path: Path, tags: tuple[str, ...]) -> tuple[NDArray, NDArray]:
    """Top-1 accuracies in [0, 1] and numbers of parameters of models by `name.tag`, [N] each.

    NaN for a model that the file lacks. Raises UserError for a file with other columns.
    """
    table = read_text(path)
    if "timm" in table.columns:
        table = table.select(model="timm", top1="top1", param_count="params_millions")
    if not {"model", "top1", "param_count"} <= {*table.columns}:
        raise UserError(
            f"{path} has the columns {', '.join(table.columns)}; expected model, top1, "
            "param_count, as in timm's results-imagenet.csv"
        )
    rate = pl.col("top1").cast(pl.Float64) / 100
    size = pl.col("param_count").str.replace_all(",", "").cast(pl.Float64) * 1e6
    found = pl.DataFrame({"model": tags}).join(
        table.select("model", rate, size), "model", how="left", maintain_order="left"
    )
    rates, sizes = (column.fill_null(np.nan).to_numpy() for column in found[:, 1:])
    return rates, sizes
