"""Outcomes that cover the first images alone, and are continued, end with the same rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pytest
import torch
from numpy.typing import NDArray

from netkin.data import views
from netkin.data.views import View
from netkin.errors import UserError
from netkin.jobs.pool import Advance, Result
from netkin.model import Model
from netkin.passes import Item
from netkin.passes import transfer as transfer_pass
from netkin.passes.predict import predict
from netkin.results import CLEAN, Results
from netkin.runner import Runner
from netkin.store.inventory import damage
from netkin.store.lease import holders
from netkin.zoo.build import Classifier
from tests.passes.random_images import (
    RandomImages,
    evaluation,
    with_random_weights,
    write_shards,
)

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE, BATCH, IMAGES, SHARD = 32, 4, 26, 8
"""Four shards, the last of two images."""


@dataclass
class Crafted:
    """A target with a clean pass, and three sources with images of random noise."""

    results: Results
    runner: Runner
    target: Model
    sources: list[Model]

    def transfer(
        self,
        sources: Sequence[Model],
        images: int | None = None,
        advance: Advance = lambda _n: None,
    ) -> Result:
        item = Item(self.target.name, self.target, tuple(sources), images)
        return transfer_pass.transfer(self.results, self.runner, item, advance)

    def missing(self, images: int) -> list[Model]:
        return self.results.missing_sources([self.target], self.sources, images)["t"]

    def fooled(self) -> NDArray:
        return self.results.fooled(self.sources[:1], [self.target])[0]

    def files(self) -> list[Path]:
        return self.results.outcome_store.files("t")

    def everything(self) -> list[tuple]:
        """All rows that are stored."""
        rows = [pl.read_parquet(file) for file in self.files()]
        return sorted(row for part in rows for row in part.iter_rows())


@pytest.fixture(scope="module")
def model() -> Classifier:
    return with_random_weights("test_efficientnet")


@pytest.fixture
def crafted(tmp_path: Path, model: Classifier) -> Crafted:
    pixels = views.load(RandomImages(2 * IMAGES, SIZE), range(2 * IMAGES), View(SIZE)).contiguous()
    with torch.no_grad():
        labels = model(pixels[:IMAGES].float() / 255).argmax(dim=1).tolist()
    images = RandomImages(IMAGES, SIZE, labels)
    results, runner, target, sources = evaluation(tmp_path, model, images, BATCH)
    predict(results, runner, Item("t", target, (CLEAN,)), lambda _n: None)
    write_shards(results, sources, pixels[IMAGES:])
    return Crafted(results, runner, target, sources)


def test_outcomes_are_continued_to_the_rows_of_one_go(
    crafted: Crafted, monkeypatch: pytest.MonkeyPatch
) -> None:
    c = crafted
    c.transfer(c.sources)
    whole, fooled = c.everything(), c.fooled()
    assert len(c.files()) == 1 and fooled.sum() > 0
    monkeypatch.setattr(transfer_pass, "FLUSH", 0.0)  # a file a source
    evaluated = 0
    c.files()[0].unlink()
    for images in (SHARD, 3 * SHARD, 3 * SHARD, IMAGES):
        if missing := c.missing(images):
            evaluated += c.transfer(missing, images).images
        assert not c.missing(images) and not c.missing(SHARD)
        assert set(c.results.covered(c.target, c.sources).values()) == {images}
        first = c.fooled()
        assert (first[:, :images] == fooled[:, :images]).all() and not first[:, images:].any()
        assert not damage(c.results.store.root, lambda _n: None)
    assert c.everything() == whole and len(c.files()) == 3 * len(c.sources)
    assert evaluated == len(c.sources) * IMAGES  # no image twice


@pytest.mark.parametrize("others", [SHARD, 3 * SHARD, IMAGES, 0])
def test_another_process_got_further_in_the_meantime(
    crafted: Crafted, monkeypatch: pytest.MonkeyPatch, others: int
) -> None:
    """Or its file was removed: what is planned from an old state ends with the same rows."""
    c, one = crafted, crafted.sources[:1]
    c.transfer(one)
    whole = c.everything()
    c.files()[0].unlink()
    if others:
        c.transfer(one, others)
    real, planned = Results.covered, SHARD if others != SHARD else 0

    def stale(*_: object) -> dict[str, int]:
        monkeypatch.setattr(Results, "covered", real)
        return {one[0].name: planned}

    monkeypatch.setattr(Results, "covered", stale)
    result = c.transfer(one)
    if result.remaining is not None:
        assert others == 0
        c.transfer(result.remaining.todo)
    assert c.everything() == whole


def test_what_a_stopped_pass_has_done_is_kept(crafted: Crafted) -> None:
    """A stop, or an error of the second source, after the first source was evaluated."""
    c = crafted

    class Enough(Exception):
        pass

    def stop(_n: int) -> None:
        raise Enough

    with pytest.raises(Enough):
        c.transfer(c.sources, advance=stop)
    assert list(c.results.covered(c.target, c.sources).values()) == [IMAGES, 0, 0]
    assert not holders(c.results.store.root)


def test_a_damaged_beginning_is_found(crafted: Crafted) -> None:
    c = crafted
    c.transfer(c.sources[:1], SHARD)
    (file,) = c.files()
    content = bytearray(file.read_bytes())
    content[20] ^= 1
    file.write_bytes(content)
    c.transfer(c.sources[:1])
    with pytest.raises(UserError, match=f"{file} is damaged"):
        c.fooled()
