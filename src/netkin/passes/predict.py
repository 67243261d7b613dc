"""A model's predictions on the images: as they are, under noise, and through other models' views.

The last two are controls. A brittle model errs under any change of its input, so each is evaluated
under `netkin.attacks.SignNoise` of the attack's own eps, which uses no gradient. And an adversarial
image reaches a target through the source's crop and a resize, which alone can make the target err.
"""

import time
from collections.abc import Sequence

import pytorch_lightning as pl
import torch
from torch import Tensor

from netkin.attacks import SignNoise
from netkin.attacks.grid import to_grid
from netkin.data.views import View
from netkin.errors import UserError
from netkin.evaluation import Evaluation
from netkin.jobs.pool import Advance, Result
from netkin.model import Model
from netkin.passes import Item
from netkin.results import CLEAN, NOISE_SEED, Change, Results
from netkin.runner import Predictor, Runner
from netkin.store.files import write_tensors
from netkin.store.lease import lease


class Predict(pl.LightningModule):
    """One model's logits, or with a change of the images its predictions, on all images."""

    def __init__(
        self,
        predictor: Predictor,
        evaluation: Evaluation,
        model: Model,
        change: Change,
        advance: Advance,
    ):
        super().__init__()
        self.predictor, self.evaluation, self.advance = predictor, evaluation, advance
        self.name, self.size, self.change = model.name, model.view.input_size, change
        self.parts: list[Tensor] = []

    def predict_step(self, batch: dict) -> None:
        """Evaluate one shard."""
        images = batch["images"]
        for logits in self.predictor.logits(images, self.size, self.evaluation.interpolation):
            self.parts.append((logits if self.change == CLEAN else logits.argmax(dim=1)).cpu())
        self.advance(len(images))

    def tensors(self) -> dict[str, Tensor]:
        """Logits [I, K] float32, or predictions [I] int64, as they are stored.

        Raises UserError, with the images, where a logit on clean images is not finite.
        """
        values = torch.cat(self.parts)
        if self.change != CLEAN:
            return {"predictions": values}
        bad = (~values.isfinite().all(dim=1)).nonzero().flatten().tolist()
        if bad:
            raise UserError(
                f"{self.name} gives NaN or infinite logits on {len(bad)} of {len(values)} clean "
                f"images ({self.evaluation.image_names(bad)}); are its weights intact?"
            )
        return {"logits": values}


def predict(results: Results, runner: Runner, item: Item, advance: Advance) -> Result:
    """Store a model's predictions on changes of the images, unless another process computes them.

    Raises UserError where the model gives NaN or infinite logits, or does not fit into memory.
    """
    start, model, evaluation = time.perf_counter(), item.of_model(), results.evaluation
    classifier, predictor, done, taken = None, None, 0, []
    for change in item.todo:
        file = results.prediction_file(model, change)
        with lease(results.store.root, file) as held:
            if not held:
                taken.append(change)
                continue
            if results.has(model, change):
                advance(len(evaluation.subset))
                continue
            if predictor is None:
                classifier = model.build()
                predictor = runner.predictor(classifier)
            assert classifier is not None
            module = Predict(predictor, evaluation, model, change, advance)
            shards = list(range(len(evaluation.shards)))
            runner.run(
                module,
                shards,
                lambda shard, change=change: {"images": changed(results, model, change, shard)},
            )
            tensors = module.tensors()  # before the folder is made, which broken models must not do
            results.clean_folder(model).claim()
            params = sum(parameter.numel() for parameter in classifier.parameters())
            notes = {"params": str(params)} if change == CLEAN else {}
            write_tensors(file, tensors, **notes)
            done += 1
    return Result(
        images=len(evaluation.subset) * done,
        seconds=time.perf_counter() - start,
        remaining=item.left(tuple(taken)),
    )


def changed(results: Results, model: Model, change: Change, shard: int) -> Tensor:
    """A shard of the subset as a model gets it, [n, 3, H, W] as adversarial images are stored."""
    clean = results.pixels(change if isinstance(change, View) else model.view, shard)
    if change == CLEAN or isinstance(change, View):
        return clean
    keys = results.evaluation.keys(model.name, results.evaluation.shards[shard])
    return noised(results.evaluation, clean, keys)


def noised(evaluation: Evaluation, clean: Tensor, keys: Sequence[str]) -> Tensor:
    """Images [n, 3, H, W] uint8 under noise of the attack's eps, drawn from a key an image."""
    eps = evaluation.attack.eps
    assert eps is not None
    pixels, labels = clean.float() / 255, torch.zeros(len(clean), dtype=torch.long)
    noisy = SignNoise(eps, NOISE_SEED).perturb(torch.nn.Identity(), pixels, labels, keys)
    return to_grid(noisy, clean, eps) if evaluation.dtype == "uint8" else noisy
