"""The only gate to what the store holds of an evaluation: what is done, what is missing, reading.

Each kind of result has a folder (`Folder`, with the identity of what made it) a model: decoded
views, clean logits with the predictions under noise and through other views, other measures such as
features, and under the attack the adversarial images. Outcomes are one table
(`netkin.store.outcomes`). Passes write what `missing_...` lists; the rest only reads.
"""

import itertools
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor

from netkin import components, similarity
from netkin.analysis.suspect import TRIED, Input, other_inputs
from netkin.data import views
from netkin.data.views import View
from netkin.errors import StoreError
from netkin.evaluation import Evaluation
from netkin.model import Model
from netkin.similarity import Outcomes
from netkin.store import folder as folder_name
from netkin.store.files import checksum, damaged, digest, pack, read_metadata, unpack
from netkin.store.layout import Folder, Store, shard_file
from netkin.store.outcomes import OutcomeStore, outcomes_folder

NOISE_SEED = 0
"""Of the control's noise. Images and models have noise of their own."""
IN_MEMORY = 2**30
"""Bytes of outcomes above which they are kept in a temporary file."""
Change = View | str
"""What is done to clean images: CLEAN, NOISE or INPUTS in the model's own view, or another view."""
CLEAN, NOISE, INPUTS = "clean", "noise", "inputs"


@dataclass(frozen=True)
class Results:
    """What a store holds of one evaluation.

    Attributes:
        store: where results are stored.
        evaluation: images, task and attack.
    """

    store: Store
    evaluation: Evaluation

    def under(self, **changes: Any) -> "Results":
        """Those of the same evaluation with other attributes, such as `attack`."""
        return Results(self.store, replace(self.evaluation, **changes))

    @cached_property
    def folder(self) -> Path:
        """The folder of the subset, which is made if need be."""
        return self.store.subset(self.evaluation.task.dataset, self.evaluation.subset)

    # Decoded images

    def view_folder(self, view: View) -> Folder:
        """The folder of the images after a resize and crop."""
        evaluation = self.evaluation
        view_identity = {"view": asdict(view), "shard_size": evaluation.shard_size}
        identity = {**evaluation.identity(), **view_identity}
        return Folder(self.folder / "views" / digest(identity)[:12], identity)

    def pixels(self, view: View, shard: int, most: int | None = None) -> Tensor:
        """A shard of the subset, or its first images, through a view, [n, 3, H, W] uint8; decoded
        if it is not stored."""
        folder = self.view_folder(view)
        if (file := shard_file(folder, shard)).is_file():
            return folder.read(file)["pixels"][:most]
        subset = self.evaluation.subset
        positions = [subset.positions[i] for i in self.evaluation.shards[shard][:most]]
        return views.load(self.evaluation.images, positions, view)

    def images_at(self, view: View, positions: Sequence[int]) -> Tensor:
        """Images of the subset at any positions, through a view, [n, 3, H, W] uint8."""
        size = self.evaluation.shard_size
        loaded = {shard: self.pixels(view, shard) for shard in {p // size for p in positions}}
        return torch.stack([loaded[p // size][p % size] for p in positions])

    def missing_views(self, models: Sequence[Model]) -> dict[int, tuple[View, ...]]:
        """The shards that are not stored in all of the models' views, with the views that lack."""
        folders = {view: self.view_folder(view) for view in {m.view: None for m in models}}
        missing = {
            shard: tuple(v for v, f in folders.items() if not shard_file(f, shard).is_file())
            for shard in range(len(self.evaluation.shards))
        }
        return {shard: lacking for shard, lacking in missing.items() if lacking}

    # Predictions on clean images, under noise, and through other views

    def clean_folder(self, model: Model) -> Folder:
        """The folder of a model's logits and predictions."""
        identity = {**self.evaluation.identity(), "model": model.identity}
        return Folder(self.folder / "clean" / folder_name(model.name), identity)

    def prediction_file(self, model: Model, change: Change) -> Path:
        """The file of a model's logits on clean images, or of its predictions on changed ones."""
        folder, evaluation = self.clean_folder(model).path, self.evaluation
        if change == CLEAN:
            return folder / "logits.safetensors"
        if isinstance(change, View):
            key = {"view": asdict(change), "interpolation": evaluation.interpolation}
            return folder / f"seen-as-{digest(key)[:12]}.safetensors"
        if change == INPUTS:
            tried = {"inputs": self.inputs(model), "images": TRIED}
            return folder / f"inputs-{digest(tried)[:12]}.safetensors"
        key = {"eps": evaluation.attack.eps, "seed": NOISE_SEED, "dtype": evaluation.dtype}
        return folder / f"noise-{digest(key)[:12]}.safetensors"

    def has(self, model: Model, change: Change = CLEAN) -> bool:
        """Whether a model's predictions are stored. Raises OtherContents if another model's are."""
        folder = self.clean_folder(model)
        if not folder.path.exists():
            return False
        folder.claim()
        return self.prediction_file(model, change).is_file()

    def other_views(self, models: Sequence[Model]) -> dict[str, list[View]]:
        """The others' views through which a model's predictions are not stored, by its name."""
        distinct = dict.fromkeys(model.view for model in models)
        return {m.name: [v for v in distinct if v != m.view and not self.has(m, v)] for m in models}

    def logits(self, model: Model) -> Tensor:
        """A model's clean logits, [I, K] float32."""
        return self.clean_folder(model).read(self.prediction_file(model, CLEAN))["logits"]

    @contextmanager
    def logits_by_block(
        self, models: Sequence[Model]
    ) -> Iterator[Callable[[slice], NDArray[np.float32]]]:
        """A reader of M models' clean logits: slice of images -> [M, images, K] float32."""
        with ExitStack() as stack:
            files = [
                stack.enter_context(safe_open(self.prediction_file(model, CLEAN), "np"))
                for model in models
            ]
            parts = [file.get_slice("logits") for file in files]
            yield lambda block: np.stack([part[block] for part in parts])

    def inputs(self, model: Model) -> list[Input]:
        """What is tried on a model whose accuracy is far below the others'."""
        return other_inputs(model.preprocessing.mean, model.preprocessing.std)

    def predictions(self, model: Model, change: Change = CLEAN) -> Tensor:
        """The classes that a model predicts, [I] int64; of INPUTS [inputs, n] of `tried_images`."""
        if change == CLEAN:
            return self.logits(model).argmax(dim=1)
        return self.clean_folder(model).read(self.prediction_file(model, change))["predictions"]

    def correct(self, model: Model) -> Tensor:
        """Which clean images a model classifies correctly, [I] bool."""
        return self.predictions(model) == self.evaluation.labels

    def clean_notes(self, model: Model) -> dict[str, str]:
        """What `netkin.passes.predict` noted of a model whose clean pass is done."""
        file = self.prediction_file(model, CLEAN)
        return read_metadata(file, self.clean_folder(model).owner(file))

    def params(self, model: Model) -> int:
        """Number of parameters of a model whose clean pass is done."""
        return int(self.clean_notes(model)["params"])

    def components(self, model: Model) -> dict[str, str]:
        """The 13 components of a model; see `netkin.components`, whose errors it raises.

        They are read off once, and kept beside its clean logits for as long as the rules are the
        same. Of code of the user's own, which no hash covers, nothing is kept.
        """
        member, task = model.member, model.task
        if member.target or not (model.has_weights and self.has(model)):
            return components.components(member, task)
        folder = self.clean_folder(model)
        file = folder.path / f"components-{components.rules()[:12]}.safetensors"
        if not file.is_file():
            found = components.components(member, task)
            with suppress(StoreError):  # a store that is only read
                folder.write(file, {}, **found)
            return found
        folder.read(file)  # raises where a byte is another
        notes = read_metadata(file, folder.owner(file))
        return {name: notes[name] for name in components.COMPONENTS}

    def base_architecture(self, model: Model) -> str:
        """The first of a model's components; its family for code of the user's own."""
        own = bool(model.member.target)
        return model.family if own else self.components(model)[components.COMPONENTS[0]]

    def resize_errors(self, models: Sequence[Model]) -> pl.DataFrame:
        """How often a target errs on another model's view of clean images: the control of resizing.

        One row an ordered pair of different views, sorted by error, largest first. Columns:
        source_view, target_view (in words), targets (models with that view), images (mean number
        that a target classifies correctly in its own view) and resize_error: the share of those
        that it gets wrong in the source's view, averaged over the targets.
        """
        by_view: dict[View, list[Model]] = {}
        for model in models:
            by_view.setdefault(model.view, []).append(model)
        right = {model.name: self.correct(model) for model in models}
        rows = []
        for source, target in itertools.permutations(by_view, 2):
            shares, images = [], []
            for model in by_view[target]:
                if right[model.name].any():
                    wrong = self.predictions(model, source) != self.evaluation.labels
                    shares.append(wrong[right[model.name]].float().mean().item())
                    images.append(int(right[model.name].sum()))
            number = float(np.mean(images)) if images else 0.0
            mean = float(np.mean(shares)) if shares else None
            rows.append((view_text(source), view_text(target), len(by_view[target]), number, mean))
        schema = {
            "source_view": pl.String,
            "target_view": pl.String,
            "targets": pl.Int64,
            "images": pl.Float64,
            "resize_error": pl.Float64,
        }
        table = pl.DataFrame(rows, schema, orient="row")
        return table.sort("resize_error", descending=True, nulls_last=True)

    # Other measures

    def measure_folder(self, kind: str, identity: Mapping[str, Any], model: Model) -> Folder:
        """The folder of a model's data for another measure of similarity, such as features."""
        measure = {**identity, "shard_size": self.evaluation.shard_size}
        path = self.folder / "measures" / f"{kind}-{digest(measure)[:8]}" / folder_name(model.name)
        whole = {**self.evaluation.identity(), "measure": measure, "model": model.identity}
        return Folder(path, whole)

    # Adversarial images

    @cached_property
    def attack_folder(self) -> Folder:
        attack = self.evaluation.attack_identity()
        name = f"{folder_name(self.evaluation.attack.name)}-{digest(attack)[:8]}"
        identity = {**self.evaluation.identity(), "attack": attack}
        return Folder(self.folder / name, identity).claim()

    def adversarial_folder(self, model: Model) -> Folder:
        """The folder of a source's adversarial images."""
        of = {"model": model.identity, "shard_size": self.evaluation.shard_size}
        path = self.attack_folder.path / "adversarial" / folder_name(model.name)
        return Folder(path, {**self.attack_folder.identity, **of})

    def missing_shards(self, model: Model, images: int | None = None) -> list[int]:
        """Shards of the subset, or of its first images, that are still to be crafted.

        Raises OtherContents when another model or attack made the others.
        """
        folder, evaluation = self.adversarial_folder(model), self.evaluation
        shards = range(len(evaluation.shards if images is None else evaluation.shards_of(images)))
        if not folder.path.exists():
            return list(shards)
        folder.claim()
        return [shard for shard in shards if not shard_file(folder, shard).is_file()]

    def attackable(self, model: Model, shards: Sequence[int]) -> int:
        """How many images of some shards a model, whose clean pass is done, classifies correctly:
        these are attacked."""
        right = self.correct(model)
        return sum(int(right[list(self.evaluation.shards[shard])].sum()) for shard in shards)

    def adversarial(self, model: Model, shard: int) -> tuple[Tensor, Tensor]:
        """A stored shard: (images [n, 3, H, W], their positions in the subset [n]).

        Raises DamagedFile where it is cut, altered or another's, and where 8-bit images do not come
        out as they were crafted, since the clean ones have changed.
        """
        folder = self.adversarial_folder(model)
        file = shard_file(folder, shard)
        tensors = folder.read(file)
        index = tensors["index"]
        if "images" in tensors:  # float32
            return tensors["images"], index
        clean = self.pixels(model.view, shard)[index % self.evaluation.shard_size]
        try:
            images = unpack(tensors["difference"], clean)
            changed = checksum({"images": images}, {}) != read_metadata(file)["images"]
        except ValueError:
            changed = True
        if changed:
            raise damaged(
                file,
                "it is the difference from clean images that have changed: other versions of the "
                "libraries decode and resize them now, or the view's files were replaced",
            )
        return images, index

    def write_adversarial(
        self, model: Model, shard: int, images: Tensor, clean: Tensor, index: Tensor
    ) -> None:
        """Store a shard; 8-bit images as `netkin.store.files.pack` does, others as they are.

        Args:
            model: the source.
            shard: its number.
            images: adversarial, [n, 3, H, W] uint8 or float32, on the CPU.
            clean: those that they were made of, through the source's view, [n, 3, H, W] uint8.
            index: [n] their positions in the subset.

        Raises StoreError where the file cannot be written.
        """
        folder = self.adversarial_folder(model)
        file = shard_file(folder, shard)
        if images.dtype != torch.uint8:
            folder.write(file, {"images": images, "index": index})
            return
        tensors = {"difference": pack(images, clean), "index": index}
        view = self.view_folder(model.view).path.name
        folder.write(file, tensors, view=view, images=checksum({"images": images}, {}))

    # Outcomes

    @cached_property
    def outcome_store(self) -> OutcomeStore:
        """The table of outcomes."""
        transfer = self.evaluation.transfer_identity()
        path = self.attack_folder.path / outcomes_folder(self.evaluation.target_precision)
        identity = {**self.attack_folder.identity, "transfer": transfer}
        return OutcomeStore(Folder(path, identity).claim().path)

    def source_digest(self, source: Model) -> str:
        """The hash of what crafted a source's images, which is stored with outcomes."""
        return digest(self.adversarial_folder(source).identity)

    def covered(self, target: Model, sources: Sequence[Model]) -> dict[str, int]:
        """How many of the subset's images, from the first on, a target was evaluated on: by source.

        Raises OtherContents when other models made outcomes of these names.
        """
        digests = {source.name: self.source_digest(source) for source in sources}
        return self.outcome_store.covered(target.name, target.digest, digests)

    def missing_sources(
        self,
        targets: Sequence[Model],
        sources: Sequence[Model] | None = None,
        images: int | None = None,
    ) -> dict[str, list[Model]]:
        """The sources that a target has still to be run on, by its name; none are left out.

        The sources are the targets themselves, unless given; all images are needed, or the first so
        many. Raises OtherContents when other models made outcomes of these names.
        """
        needed = len(self.evaluation.subset) if images is None else images
        sources = list(targets if sources is None else sources)
        digests = {source.name: self.source_digest(source) for source in sources}
        missing = {}
        for target in targets:
            done = self.outcome_store.covered(target.name, target.digest, digests)
            missing[target.name] = [source for source in sources if done[source.name] < needed]
        return missing

    def fooled(self, sources: Sequence[Model], targets: Sequence[Model]) -> NDArray[np.bool_]:
        """Which adversarial images of each source fool each target, [sources, targets, I].

        False where source or target is wrong on the clean image: there it was not evaluated.
        """
        names, ids = [source.name for source in sources], self.evaluation.subset.ids
        fooled = outcome_array((len(names), len(targets), len(ids)))
        for i, target in enumerate(targets):  # all rows of a large zoo would fill the memory
            fooled[:, i] = self.outcome_store.fooled(target.name, names, ids)
        return fooled

    def outcomes(
        self,
        models: Sequence[Model],
        sources: Sequence[Model] | None = None,
        images: int | None = None,
    ) -> Outcomes:
        """The outcomes of models as arrays, on all images or the first so many.

        Where only some of them are sources, the rows of the others are all False and mean nothing.
        """
        position = {model.name: i for i, model in enumerate(models)}
        names = [source.name for source in (models if sources is None else sources)]
        ids = self.evaluation.subset.ids
        n, rows = len(ids) if images is None else images, [position[name] for name in names]
        fooled = outcome_array((len(models), len(models), n))
        for i, target in enumerate(models):
            fooled[rows, i] = self.outcome_store.fooled(target.name, names, ids)[:, :n]
        noise = None
        if self.evaluation.has_noise and all(self.has(model, NOISE) for model in models):
            classes = torch.stack([self.predictions(model, NOISE)[:n] for model in models])
            noise = (classes != self.evaluation.labels[:n]).numpy()
        return Outcomes(
            members=tuple(position),
            image_ids=ids[:n],
            correct=torch.stack([self.correct(model)[:n] for model in models]).numpy(),
            fooled=fooled,
            noise=noise,
        )

    def mistakes(self, models: Sequence[Model], images: int | None = None) -> NDArray[np.int32]:
        """The class that each target predicts on each source's adversarial images, [N, N, I] by
        source and target, on all images or the first so many; -1 where it was not evaluated."""
        names, ids = [model.name for model in models], self.evaluation.subset.ids
        n = len(ids) if images is None else images
        classes = outcome_array((len(names), len(names), n), np.int32)
        for i, target in enumerate(names):
            classes[:, i] = self.outcome_store.predictions(target, names, ids)[:, :n]
        return classes

    def landmark_scores(
        self,
        models: Sequence[Model],
        landmarks: Sequence[int],
        one_sided: bool,
        eps_s: float = similarity.EPS_S,
    ) -> tuple[NDArray[np.float64], pl.DataFrame]:
        """The scores of all models with m landmarks, whose passes are done: no other pair is read.

        Args:
            models: N of them.
            landmarks: [m] positions of the landmarks among them.
            one_sided: whether only landmarks were attacked.
            eps_s: the floor of 100 p.

        Returns:
            scores: [N, N], smoothed, in nats; NaN for pairs without a landmark, and on the diagonal
                of other models. Symmetric, unless only landmarks were attacked: then entry [a, b]
                is of how often the images of the landmark a fool b.
            pairs: a row a pair with a landmark: a (the landmark), b, n, a_fools_b, b_fools_a (null
                where b was not attacked), score, low, high (95 % interval).

        Each pair with a landmark has an image that both classify correctly.
        """
        names, at = [model.name for model in models], np.asarray(landmarks, dtype=np.intp)
        others, chosen = np.setdiff1d(np.arange(len(models)), at), [models[i] for i in at]
        right = np.stack([self.correct(model).numpy() for model in models])  # [N, I]
        both = right[at, None] & right  # [m, N, I]
        n = both.sum(axis=2)
        assert n.all()  # by Run.with_common_images
        forward = self.fooled(chosen, models)
        back = forward.copy()  # of models that were not attacked, the one direction counts twice
        back[:, at] = forward[:, at].swapaxes(0, 1)
        if len(others) and not one_sided:
            back[:, others] = self.fooled([models[i] for i in others], chosen).swapaxes(0, 1)
        there, again = ((direction & both).sum(axis=2) for direction in (forward, back))
        scores = np.full((len(models), len(models)), np.nan)
        for k, a in enumerate(at):
            mean = (there[k] + again[k]) / 2
            scores[:, a] = similarity.smoothed(again[k] if one_sided else mean, n[k])
            scores[a] = similarity.smoothed(there[k] if one_sided else mean, n[k])
        rank = np.full(len(models), len(at))
        rank[at] = np.arange(len(at))
        first, second = np.nonzero(rank > np.arange(len(at))[:, None])  # each pair once
        picked = (first, second)
        always = (forward & back & both).sum(axis=2)[picked]
        half, unknown = (there + again)[picked] - 2 * always, one_sided & (rank == len(at))[second]
        values, low, high = similarity.with_intervals(always, half, n[picked], eps_s)
        b_fools_a = (again / n)[picked].tolist()
        columns = {
            "a": [chosen[k].name for k in first],
            "b": [names[b] for b in second],
            "n": n[picked],
            "a_fools_b": (there / n)[picked],
            "b_fools_a": [None if u else p for u, p in zip(unknown, b_fools_a, strict=True)],
            "score": values,
            "low": low,
            "high": high,
        }
        return scores, pl.DataFrame(columns, schema_overrides={"b_fools_a": pl.Float64})


def view_text(view: View) -> str:
    """A view in words: "224 px, crop 0.9, bicubic"."""
    crop = "" if view.crop_mode == "center" else f" {view.crop_mode}"
    return f"{view.input_size} px, crop {view.crop_pct:.4g}{crop}, {view.interpolation}"


def outcome_array(shape: tuple[int, ...], dtype: type = np.bool_) -> NDArray[Any]:
    """An array of zeros; a large one is mapped from a file, whose pages the system can drop."""
    if math.prod(shape) * np.dtype(dtype).itemsize <= IN_MEMORY:
        return np.zeros(shape, dtype)
    with tempfile.TemporaryFile(prefix="netkin-outcomes-") as file:
        return np.memmap(file, dtype, mode="w+", shape=shape)
