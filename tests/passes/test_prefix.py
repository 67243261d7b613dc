"""Outcomes that cover the first images alone, and are continued, end with the same bytes."""

from pathlib import Path

import pytest
import torch

from experiments.benchmarks.passes import RandomImages, evaluation, write_shards
from experiments.benchmarks.speed import with_random_weights
from netkin.data import views
from netkin.data.views import View
from netkin.errors import StoreError
from netkin.passes.clean import clean_pass
from netkin.passes.setting import Setting
from netkin.passes.stored import Target, fooled_by, missing_sources, outcome_store
from netkin.passes.transfer import transfer
from netkin.store.inventory import damage
from netkin.store.layout import ALL, OutcomeStore
from netkin.zoo.build import Classifier
from netkin.zoo.member import Member

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE, BATCH, IMAGES, SHARD = 32, 4, 26, 8
"""Four shards, the last of two images."""


@pytest.fixture(scope="module")
def model() -> Classifier:
    return with_random_weights("test_efficientnet", "cpu")[0]


@pytest.fixture
def crafted(tmp_path: Path, model: Classifier) -> tuple[Setting, Member, list[Member]]:
    """A target with a clean pass, and three sources with images of random noise."""
    pixels = views.load(RandomImages(2 * IMAGES, SIZE), range(2 * IMAGES), View(SIZE)).contiguous()
    with torch.no_grad():
        labels = model(pixels[:IMAGES].float() / 255).argmax(dim=1).tolist()
    setting, target, sources = evaluation(
        tmp_path, model, RandomImages(IMAGES, SIZE, labels), BATCH
    )
    clean_pass(setting, target, lambda _n: None)
    write_shards(setting, sources, pixels[IMAGES:])
    return setting, target, sources


def files(table: OutcomeStore) -> dict[str, bytes]:
    return {str(f.relative_to(table.path)): f.read_bytes() for f in table.path.rglob("*.parquet")}


def test_outcomes_are_continued_to_the_bytes_of_one_go(
    crafted: tuple[Setting, Member, list[Member]],
) -> None:
    setting, target, sources = crafted
    table = outcome_store(setting)
    transfer(setting, Target(target, tuple(sources)), lambda _n: None)
    whole, fooled = files(table), fooled_by(setting, sources[0], [target])
    assert len(whole) == len(sources) and fooled.sum() > 0
    for file in table.path.rglob("*.parquet"):
        file.unlink()
    evaluated = 0
    for images in (SHARD, 3 * SHARD, 3 * SHARD, IMAGES):
        for part in missing_sources(setting, [target], sources, images):
            evaluated += transfer(setting, part, lambda _n: None).images
        assert not missing_sources(setting, [target], sources, images)
        assert not missing_sources(setting, [target], sources, SHARD)
        assert table.covered("a", "t") == (ALL if images == IMAGES else images)
        rows = table.rows("a", "t")
        assert rows["image_id"].to_list() == list(setting.subset.ids[:images])
        first = fooled_by(setting, sources[0], [target])
        assert (first[:, :images] == fooled[:, :images]).all() and not first[:, images:].any()
        assert not damage(setting.store.root, lambda _n: None)
    assert files(table) == whole
    assert evaluated == len(sources) * IMAGES  # no image twice


@pytest.mark.parametrize("others", [SHARD, 3 * SHARD, IMAGES, 0])
def test_another_process_got_further_in_the_meantime(
    crafted: tuple[Setting, Member, list[Member]], monkeypatch: pytest.MonkeyPatch, others: int
) -> None:
    """Or its file was removed: what is planned from an old state ends with the same bytes."""
    setting, target, sources = crafted
    table, one = outcome_store(setting), sources[:1]
    transfer(setting, Target(target, tuple(one)), lambda _n: None)
    whole = files(table)
    real, planned = OutcomeStore.covered, SHARD if others != SHARD else 0
    table.file("a", "t").unlink()
    if others:
        transfer(setting, Target(target, tuple(one), images=others), lambda _n: None)

    def stale(self: OutcomeStore, *names: str) -> int:
        monkeypatch.setattr(OutcomeStore, "covered", real)
        return planned

    monkeypatch.setattr(OutcomeStore, "covered", stale)
    result = transfer(setting, Target(target, tuple(one)), lambda _n: None)
    if result.remaining is not None:
        assert others == 0
        transfer(setting, result.remaining, lambda _n: None)
    assert files(table) == whole


def test_a_damaged_beginning_is_not_continued(
    crafted: tuple[Setting, Member, list[Member]],
) -> None:
    setting, target, sources = crafted
    transfer(setting, Target(target, tuple(sources[:1]), images=SHARD), lambda _n: None)
    file = outcome_store(setting).file("a", "t")
    content = bytearray(file.read_bytes())
    content[20] ^= 1
    file.write_bytes(content)
    with pytest.raises(StoreError, match=r"target=t\.parquet is damaged"):
        transfer(setting, Target(target, tuple(sources[:1])), lambda _n: None)
