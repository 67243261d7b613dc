"""The passes on images of noise and a model with random weights: what is stored does not depend on
how models are run, where a run stopped, or what other processes did in the meantime."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from netkin import components
from netkin import runner as runner_module
from netkin.attacks import PGD, Clean, as_attack
from netkin.data import views
from netkin.data.subset import draw
from netkin.data.views import View
from netkin.errors import DamagedFile, StoreError, UserError
from netkin.evaluation import Evaluation
from netkin.jobs.pool import Advance, Result
from netkin.model import Model
from netkin.passes import Item, craft
from netkin.passes import transfer as transfer_pass
from netkin.passes.predict import predict
from netkin.results import CLEAN, Results
from netkin.runner import Batches, Runner
from netkin.store import files, inventory
from netkin.store.files import file_sha256, write_tensors
from netkin.store.layout import Folder, Store, shard_file
from netkin.store.lease import holders
from netkin.zoo.build import Classifier
from netkin.zoo.execution import Execution, Prepared
from netkin.zoo.member import Member, Task

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE, BATCH, IMAGES, SHARD = 32, 4, 26, 8
"""Four shards, the last of two images."""


class RandomImages:
    """Images of noise, for models with random weights."""

    def __init__(self, number: int, labels: Sequence[int] | None = None):
        self.classes, self.notes = [str(i) for i in range(1000)], ()
        self.ids = [f"{i:06d}" for i in range(number)]
        self.labels = [0] * number if labels is None else list(labels)

    def stamp(self, index: int) -> str:
        """The id, since the id determines the pixels."""
        return self.ids[index]

    def load(self, index: int) -> Image.Image:
        """An RGB image of uniform noise, the same at each call."""
        drawn = np.random.default_rng(index).integers(0, 256, (SIZE, SIZE, 3))
        return Image.fromarray(drawn.astype(np.uint8))


@dataclass
class Passes:
    """A target and three sources of one network; the sources' adversarial images, noise, are stored
    on request.

    Attributes:
        results, runner: as in a run, with an attack that changes nothing.
        pixels: [2 I, 3, H, W], the clean images and those of the sources.
    """

    results: Results
    runner: Runner
    target: Model
    sources: list[Model]
    pixels: Tensor

    def predict(self) -> None:
        predict(self.results, self.runner, Item("t", self.target, (CLEAN,)), lambda _n: None)

    def store_sources(self) -> None:
        for source in self.sources:
            self.results.adversarial_folder(source).claim()
            for i, positions in enumerate(self.results.evaluation.shards):
                index = torch.tensor(positions)
                images, clean = self.pixels[IMAGES + index], self.pixels[index]
                self.results.write_adversarial(source, i, images, clean, index)

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
    torch.manual_seed(0)
    net: Any = timm.create_model("test_efficientnet", num_classes=1000)
    half = (0.5, 0.5, 0.5)
    return Classifier(net, "test_efficientnet", half, half).eval().requires_grad_(False)


@pytest.fixture
def passes(tmp_path: Path, model: Classifier) -> Passes:
    pixels = views.load(RandomImages(2 * IMAGES), range(2 * IMAGES), View(SIZE)).contiguous()
    with torch.no_grad():
        labels = model(pixels[:IMAGES].float() / 255).argmax(dim=1).tolist()
    images, weights = RandomImages(IMAGES, labels), tmp_path / "weights.safetensors"
    save_file({k: v.clone() for k, v in model.net.state_dict().items()}, weights)
    task = Task("random", 1000, input_size=SIZE)
    target, *sources = (
        Model(Member(n, model.name, checkpoint=str(weights)), task, weights) for n in "tabc"
    )
    attack = as_attack(Clean(), "clean")
    evaluation = Evaluation(images, draw(images, "random"), task, attack, shard_size=SHARD)
    results = Results(Store(tmp_path / "store"), evaluation)
    return Passes(results, Runner("cpu", BATCH), target, sources, pixels)


@pytest.fixture
def crafted(passes: Passes) -> Passes:
    """Whose clean pass is done, and whose sources have images."""
    passes.predict()
    passes.store_sources()
    return passes


@given(st.data())
def test_packed_images_come_back_byte_for_byte(data: st.DataObject) -> None:
    n, side = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 9))
    size = n * 3 * side**2
    images, clean = (
        torch.tensor(
            list(data.draw(st.binary(min_size=size, max_size=size))), dtype=torch.uint8
        ).view(n, 3, side, side)
        for _ in range(2)
    )
    packed = files.pack(images, clean)
    assert torch.equal(files.unpack(packed, clean), images)
    with pytest.raises(ValueError):  # of other images, or no packed difference
        files.unpack(packed, torch.cat([clean, torch.zeros(1, 3, side, side, dtype=torch.uint8)]))
    with pytest.raises(ValueError):
        files.unpack(packed[:-1], clean)


def test_an_image_is_read_as_it_was_stored_or_refused(
    crafted: Passes, monkeypatch: pytest.MonkeyPatch
) -> None:
    results, source = crafted.results, crafted.sources[0]
    for shard, positions in enumerate(results.evaluation.shards):
        images, index = results.adversarial(source, shard)
        assert torch.equal(images, crafted.pixels[IMAGES + index])
        assert index.tolist() == list(positions)
    load = views.load
    for change in (lambda pixels: pixels ^ 1, lambda pixels: pixels[..., :-1]):
        monkeypatch.setattr(views, "load", lambda *args, change=change: change(load(*args)))
        with pytest.raises(DamagedFile, match="clean images that have changed"):
            results.adversarial(source, 1)


def test_images_of_an_earlier_netkin_are_read(crafted: Passes) -> None:
    """They were stored as they are, as float32 images still are."""
    results, source = crafted.results, crafted.sources[0]
    folder, stored = results.adversarial_folder(source), results.adversarial(source, 1)
    folder.write(shard_file(folder, 1), {"images": stored[0], "index": stored[1]})
    for before, after in zip(stored, results.adversarial(source, 1), strict=True):
        assert torch.equal(before, after)


# How models are run


def under(passes: Passes, execution: Execution) -> tuple[Tensor, list[int]]:
    """Clean logits, and predictions on a source's images."""
    p = replace(passes, runner=replace(passes.runner, execution=execution))
    if not p.results.has(p.target):
        p.predict()
    p.store_sources()
    p.transfer(p.sources[:1])
    rows = p.results.outcome_store.read("t", [p.sources[0].name])
    return p.results.logits(p.target), rows["prediction"].to_list()


def test_nothing_fused_is_the_model_to_the_bit(passes: Passes, model: Classifier) -> None:
    logits, predictions = under(passes, Execution(fuse=False, memory_format="contiguous"))
    with torch.no_grad():
        shards = [
            part
            for half in passes.pixels.split(IMAGES)
            for part in half.float().div(255).split(BATCH)
        ]
        wanted = torch.cat([model(part) for part in shards])
    assert torch.equal(logits, wanted[:IMAGES])
    assert predictions == wanted[IMAGES:].argmax(dim=1).tolist()


@pytest.mark.slow
@pytest.mark.parametrize("execution", [Execution("bf16-mixed"), Execution(compile=True)])
def test_predictions_are_in_float32_however_models_are_attacked(
    passes: Passes, model: Classifier, execution: Execution
) -> None:
    logits, predictions = under(passes, execution)
    with torch.no_grad():
        wanted = model(passes.pixels.float() / 255)
    assert (logits - wanted[:IMAGES]).abs().max() < 1e-5 * wanted.abs().max()
    assert predictions == wanted[IMAGES:].argmax(dim=1).tolist()


def test_targets_in_another_precision_are_stored_side_by_side(
    passes: Passes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only predictions on adversarial images are in it; those in float32 keep their bytes."""
    used: list[str] = []

    def recorded(model: Classifier, execution: Execution, images: Tensor) -> Prepared:
        used.append(execution.precision)
        return Prepared(model, execution, images)

    monkeypatch.setattr(runner_module, "Prepared", recorded)
    store = passes.results.store.root
    logits, exact = under(passes, Execution())
    assert used == ["32-true"] * 2
    (attack,) = store.glob("random/*/clean-*")
    before = {f: file_sha256(f) for f in store.glob("random/**/*") if f.is_file()}
    identity = json.loads((attack / "outcomes" / "identity.json").read_text())
    assert identity["transfer"] == {"interpolation": "bilinear"}
    half = replace(passes, results=passes.results.under(target_precision="bf16-mixed"))
    same, rounded = under(half, Execution())
    assert used == ["32-true"] * 2 + ["bf16-mixed"]
    assert torch.equal(same, logits) and len(rounded) == len(exact) == IMAGES
    network = Prepared(
        passes.target.build().eval(), Execution("bf16-mixed"), passes.pixels[:2] / 255
    )
    with torch.no_grad():
        parts = [network(part.float() / 255) for part in passes.pixels[IMAGES:].split(BATCH)]
    assert rounded == torch.cat(parts).argmax(dim=1).tolist()
    assert {f: file_sha256(f) for f in before} == before
    identity = json.loads((attack / "outcomes-bf16-mixed" / "identity.json").read_text())
    assert identity["transfer"] == {"interpolation": "bilinear", "precision": "bf16-mixed"}
    assert under(passes, Execution())[1] == exact
    found = [
        Path(path).parent.name for path in inventory.parts(store).filter(kind="outcomes")["path"]
    ]
    assert sorted(found) == ["outcomes", "outcomes-bf16-mixed"]
    assert not inventory.damage(store, lambda _n: None)


MESSAGES = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"),
]


@given(st.integers(0, 100), st.integers(1, 64), st.integers(1, 64), st.sampled_from(MESSAGES))
def test_batches_are_halved_and_every_image_comes_once(
    n: int, size: int, fits: int, error: Exception
) -> None:
    sizes = []

    def work(batch: slice) -> list[int]:
        length = batch.stop - batch.start
        if length > fits:
            raise error
        sizes.append(length)
        return list(range(batch.start, batch.stop))

    batches = Batches(size, "m")
    assert [i for result in batches.run(n, work) for i in result] == list(range(n))
    assert max(sizes, default=0) <= min(size, fits)
    if n >= size > fits:
        assert batches.size <= fits  # remembered for the next call


@pytest.mark.parametrize(
    ("error", "wanted"),
    [
        (MESSAGES[0], pytest.raises(UserError, match="giant does not fit into memory")),
        (RuntimeError("shapes"), pytest.raises(RuntimeError, match="shapes")),
    ],
)
def test_a_single_image_that_does_not_fit(error: Exception, wanted: Any) -> None:
    """It names the model; other errors are not swallowed."""

    def work(batch: slice) -> None:
        raise error

    with wanted:
        list(Batches(8, "giant").run(10, work))


# Where a run stopped


def test_a_write_that_fails_ends_crafting(passes: Passes, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shards before it are stored, all leases are released, and crafting goes on from there."""
    passes.predict()
    attack = as_attack(PGD("8/255", "2/255", 2), "pgd", {"steps": 2})
    results, target, written = passes.results.under(attack=attack), passes.target, list[Path]()
    item = Item("t", target, tuple(results.missing_shards(target)))
    assert len(item.todo) == 4

    def full(folder: Folder, file: Path, tensors: dict, **_: str) -> None:
        if len(written) == 1:
            raise StoreError("full")
        written.append(file)
        write_tensors(file, tensors, folder.owner(file))

    monkeypatch.setattr(Folder, "write", full)
    with pytest.raises(StoreError, match="full"):
        craft.craft(results, passes.runner, item, lambda _n: None)
    assert results.missing_shards(target) == [1, 2, 3] and not holders(results.store.root)
    monkeypatch.undo()
    counted: list[int] = []
    found = craft.craft(results, passes.runner, item, counted.append)
    assert found.shards == 3 and sum(counted) == int(results.correct(target).sum())
    assert not results.missing_shards(target) and not holders(results.store.root)


def test_outcomes_are_continued_to_the_rows_of_one_go(
    crafted: Passes, monkeypatch: pytest.MonkeyPatch
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
        assert not inventory.damage(c.results.store.root, lambda _n: None)
    assert c.everything() == whole and len(c.files()) == 3 * len(c.sources)
    assert evaluated == len(c.sources) * IMAGES  # no image twice


@pytest.mark.parametrize("others", [SHARD, 3 * SHARD, IMAGES, 0])
def test_another_process_got_further_in_the_meantime(
    crafted: Passes, monkeypatch: pytest.MonkeyPatch, others: int
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
    remaining = c.transfer(one).remaining
    while remaining is not None:
        remaining = c.transfer(remaining.todo).remaining
    assert c.everything() == whole


def test_what_a_stopped_pass_has_done_is_kept(crafted: Passes) -> None:
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


def test_components_are_kept_by_the_rules_that_read_them(
    crafted: Passes, monkeypatch: pytest.MonkeyPatch
) -> None:
    results, target = crafted.results, crafted.target
    found = components.components(target.member, target.task)
    assert results.components(target) == found
    with monkeypatch.context() as patch:  # nothing is built again
        patch.setattr(components, "components", lambda *_: {"Base architecture": "other"})
        assert results.components(target) == found
        assert results.base_architecture(target) == found["Base architecture"]
        patch.setattr(components, "rules", lambda: "others")
        assert results.base_architecture(target) == "other"
    (file,) = results.clean_folder(target).path.glob(f"components-{components.rules()[:12]}.*")
    assert found["Stem layer"] == "3s2"
    file.write_bytes(file.read_bytes().replace(b"3s2", b"3s1"))
    with pytest.raises(DamagedFile, match="checksum"):
        results.components(target)
    own = replace(target, member=replace(target.member, timm="", target="own.Net", family="Net"))
    assert results.base_architecture(own) == "Net"


def test_a_damaged_beginning_is_found(crafted: Passes) -> None:
    c = crafted
    c.transfer(c.sources[:1], SHARD)
    (file,) = c.files()
    content = bytearray(file.read_bytes())
    content[20] ^= 1
    file.write_bytes(content)
    c.transfer(c.sources[:1])
    with pytest.raises(UserError, match=f"{file} is damaged"):
        c.fooled()
