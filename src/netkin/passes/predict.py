"""A model's predictions on the images: as they are, under noise, and through other models' views.

The last two are controls. A brittle model errs under any change of its input, so each is evaluated
under `netkin.attacks.SignNoise` of the attack's own eps, which uses no gradient. And an adversarial
image reaches a target through the source's crop and a resize, which alone can make the target err.
"""

import time
from collections.abc import Sequence

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


def predict(results: Results, runner: Runner, item: Item, advance: Advance) -> Result:
    """Store a model's predictions on changes of the images, unless another process computes them:
    logits [I, K] float32 of clean images, predicted classes [I] int64 of others.

    Raises UserError where the model gives NaN or infinite logits, or does not fit into memory.
    """
    start, model, evaluation = time.perf_counter(), item.of_model(), results.evaluation
    predictor, params, done, taken = None, 0, 0, []
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
                params = sum(parameter.numel() for parameter in classifier.parameters())
                predictor = runner.predictor(classifier)
            values = _predictions(results, runner, model, predictor, change, advance)
            results.clean_folder(model).claim()  # not for a broken model, which has raised
            if change == CLEAN:
                write_tensors(file, {"logits": values}, params=str(params))
            else:
                write_tensors(file, {"predictions": values})
            done += 1
    return Result(
        images=len(evaluation.subset) * done,
        seconds=time.perf_counter() - start,
        remaining=item.left(tuple(taken)),
    )


def _predictions(
    results: Results,
    runner: Runner,
    model: Model,
    predictor: Predictor,
    change: Change,
    advance: Advance,
) -> Tensor:
    """A model's logits on all clean images [I, K], or the classes that it predicts for changed ones
    [I]. Raises UserError, with the images, where logits on clean images are not finite."""
    evaluation, parts = results.evaluation, list[Tensor]()

    def step(batch: dict) -> None:
        images = batch["images"]
        for logits in predictor.logits(images, model.view.input_size, evaluation.interpolation):
            parts.append((logits if change == CLEAN else logits.argmax(dim=1)).cpu())
        advance(len(images))

    def load(shard: int) -> dict:
        return {"images": changed(results, model, change, shard)}

    runner.run(step, list(range(len(evaluation.shards))), load, predictor)
    values = torch.cat(parts)
    if change == CLEAN and not values.isfinite().all():
        bad = (~values.isfinite().all(dim=1)).nonzero().flatten().tolist()
        raise UserError(
            f"{model.name} gives NaN or infinite logits on {len(bad)} of {len(values)} clean "
            f"images ({evaluation.image_names(bad)}); are its weights intact?"
        )
    return values


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
