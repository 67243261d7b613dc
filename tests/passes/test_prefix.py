"""Outcomes that cover the first images alone, and are continued, end with the same rows."""

from pathlib import Path

import polars as pl
import pytest
import torch

from netkin.data import views
from netkin.data.views import View
from netkin.errors import UserError
from netkin.passes import transfer as transfer_pass
from netkin.passes.clean import clean_pass
from netkin.passes.setting import Setting
from netkin.passes.stored import Target, covered, fooled_by, missing_sources, outcome_store
from netkin.passes.transfer import transfer
from netkin.store.inventory import damage
from netkin.store.lease import holders
from netkin.store.outcomes import OutcomeStore
from netkin.zoo.build import Classifier
from netkin.zoo.member import Member
from tests.passes.random_images import RandomImages, evaluation, with_random_weights, write_shards

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE, BATCH, IMAGES, SHARD = 32, 4, 26, 8
"""Four shards, the last of two images."""


@pytest.fixture(scope="module")
def model() -> Classifier:
    return with_random_weights("test_efficientnet")


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


def everything(table: OutcomeStore) -> list[tuple]:
    """All rows that are stored, file by file."""
    rows = [pl.read_parquet(file) for file in table.files("t")]
    return sorted(row for part in rows for row in part.iter_rows())


def test_outcomes_are_continued_to_the_rows_of_one_go(
    crafted: tuple[Setting, Member, list[Member]], monkeypatch: pytest.MonkeyPatch
) -> None:
    setting, target, sources = crafted
    table = outcome_store(setting)
    transfer(setting, Target(target, tuple(sources)), lambda _n: None)
    whole, fooled = everything(table), fooled_by(setting, sources[0], [target])
    assert len(table.files("t")) == 1 and fooled.sum() > 0
    monkeypatch.setattr(transfer_pass, "FLUSH", 0.0)  # a file a source
    evaluated = 0
    table.files("t")[0].unlink()
    for images in (SHARD, 3 * SHARD, 3 * SHARD, IMAGES):
        for part in missing_sources(setting, [target], sources, images):
            evaluated += transfer(setting, part, lambda _n: None).images
        assert not missing_sources(setting, [target], sources, images)
        assert not missing_sources(setting, [target], sources, SHARD)
        assert set(covered(setting, target, sources).values()) == {images}
        first = fooled_by(setting, sources[0], [target])
        assert (first[:, :images] == fooled[:, :images]).all() and not first[:, images:].any()
        assert not damage(setting.store.root, lambda _n: None)
    assert everything(table) == whole and len(table.files("t")) == 3 * len(sources)
    assert evaluated == len(sources) * IMAGES  # no image twice


@pytest.mark.parametrize("others", [SHARD, 3 * SHARD, IMAGES, 0])
def test_another_process_got_further_in_the_meantime(
    crafted: tuple[Setting, Member, list[Member]], monkeypatch: pytest.MonkeyPatch, others: int
) -> None:
    """Or its file was removed: what is planned from an old state ends with the same rows."""
    setting, target, sources = crafted
    table, one = outcome_store(setting), sources[:1]
    transfer(setting, Target(target, tuple(one)), lambda _n: None)
    whole = everything(table)
    table.files("t")[0].unlink()
    if others:
        transfer(setting, Target(target, tuple(one), images=others), lambda _n: None)
    real, planned = transfer_pass.covered, SHARD if others != SHARD else 0

    def stale(*_: object) -> dict[str, int]:
        monkeypatch.setattr(transfer_pass, "covered", real)
        return {one[0].name: planned}

    monkeypatch.setattr(transfer_pass, "covered", stale)
    result = transfer(setting, Target(target, tuple(one)), lambda _n: None)
    if result.remaining is not None:
        assert others == 0
        transfer(setting, result.remaining, lambda _n: None)
    assert everything(table) == whole


def test_what_a_stopped_pass_has_done_is_kept(
    crafted: tuple[Setting, Member, list[Member]],
) -> None:
    """A stop, or an error of the second source, after the first source was evaluated."""
    setting, target, sources = crafted

    class Enough(Exception):
        pass

    def stop(_n: int) -> None:
        raise Enough

    with pytest.raises(Enough):
        transfer(setting, Target(target, tuple(sources)), stop)
    assert list(covered(setting, target, sources).values()) == [IMAGES, 0, 0]
    assert not holders(setting.store.root)


def test_a_damaged_beginning_is_found(crafted: tuple[Setting, Member, list[Member]]) -> None:
    setting, target, sources = crafted
    transfer(setting, Target(target, tuple(sources[:1]), images=SHARD), lambda _n: None)
    (file,) = outcome_store(setting).files("t")
    content = bytearray(file.read_bytes())
    content[20] ^= 1
    file.write_bytes(content)
    transfer(setting, Target(target, tuple(sources[:1])), lambda _n: None)
    with pytest.raises(UserError, match=f"{file} is damaged"):
        fooled_by(setting, sources[0], [target])
