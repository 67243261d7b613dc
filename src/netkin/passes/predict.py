"""A model's predictions on the images: as they are, under noise, and through other models' views.

The last two are controls. A brittle model errs under any change of its input, so each is evaluated
under `netkin.attacks.SignNoise` of the attack's own eps, which uses no gradient. And an adversarial
image reaches a target through the source's crop and a resize, which alone can make the target err.

On the first clean images a model is examined: whether its logits depend on the batch or on chance,
and whether its loss has a gradient. The same images tell, when results are used again, whether a
model with code of the user's own still computes what is stored of it.
"""

import json
import time
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from netkin.analysis.suspect import BATCH, RANDOM, tried_images
from netkin.attacks import SignNoise
from netkin.attacks.base import frozen
from netkin.attacks.grid import to_grid
from netkin.data.views import View
from netkin.errors import OtherContents, UserError
from netkin.evaluation import Evaluation
from netkin.jobs.pool import Advance, Result
from netkin.model import Model
from netkin.passes import Item
from netkin.results import CLEAN, INPUTS, NOISE_SEED, Change, Results
from netkin.runner import Predictor, Runner
from netkin.store.lease import lease

EXAMINED = 8
"""Images, the subset's first ones, that a model is examined on."""
CLOSE = 1e-3
"""Of the largest logit: more than two devices, or two sizes of a batch, differ by in float32."""


def predict(results: Results, runner: Runner, item: Item, advance: Advance) -> Result:
    """Store a model's predictions on changes of the images, unless another process computes them:
    logits [I, K] float32 of clean images, predicted classes [I] int64 of others, and of INPUTS
    [inputs, n].

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
            if change == INPUTS:
                values, notes = _tried(results, runner, model, predictor), {}
                advance(len(evaluation.subset))
            else:
                values, notes = _predictions(results, runner, model, predictor, change, advance)
            folder = results.clean_folder(model).claim()  # not of a broken model, which has raised
            if change == CLEAN:
                folder.write(file, {"logits": values}, params=str(params), **notes)
            else:
                folder.write(file, {"predictions": values})
            done += 1
    return Result(
        images=len(evaluation.subset) * done,
        seconds=time.perf_counter() - start,
        remaining=item.left(tuple(taken)),
    )


def check_unchanged(results: Results, runner: Runner, models: Sequence[Model]) -> None:
    """Raises OtherContents for a model with code of its own that no longer gives the logits, or the
    gradients, that are stored of it.

    No hash covers all that such code reads, so the model is run again, on the CPU, on `EXAMINED`
    clean images. Logits may differ by `CLOSE` of the largest one, since they may be of another
    device, and gradients by a tenth. Models of a library need no such check: their arguments and
    weights identify them. Of one whose logits still depend on the batch or on chance, which is
    suspect, nothing else can be compared.
    """
    for model in models:
        if not (model.member.target and model.has_weights and results.has(model)):
            continue
        notes, stored = results.clean_notes(model), results.logits(model)[:EXAMINED]
        pixels, labels = results.pixels(model.view, 0, EXAMINED), results.evaluation.labels
        predictor = runner.predictor(model.build())  # on the CPU
        size = model.view.input_size
        with torch.no_grad():
            now = torch.cat(list(predictor.logits(pixels, size)))
            found = examine(predictor, pixels, size, labels[: len(pixels)])
        steady = not (notes["unsteady"] or found["unsteady"])
        if steady and not close(now, stored):
            what = f"its logits differ by up to {float((now - stored).abs().max()):.3g}"
        elif steady and _slopes_differ(notes["slopes"], found["slopes"]):
            what = "the gradients of its loss differ"
        elif notes["unsteady"] != found["unsteady"]:
            what = "the dependence of its logits on chance or on the batch differs"
        else:
            continue
        raise OtherContents(
            f"{model.name} is not what it was: on {len(stored)} clean images {what} from "
            f"what is in {results.clean_folder(model).path}: its code, or what that reads, has "
            "changed. Give it another name, choose another store, or remove what is stored of it"
        )


def close(a: Tensor, b: Tensor) -> bool:
    """Whether logits differ by no more than rounding, in any precision of float32's range."""
    return a.shape == b.shape and bool((a - b).abs().max() <= CLOSE * b.abs().max())


def examine(predictor: Predictor, images: Tensor, size: int, labels: Tensor) -> dict[str, str]:
    """What a model does with a few clean images besides its logits.

    Args:
        predictor: runs the model.
        images: [n, 3, H, W] uint8 in the model's own view, on its device.
        size: of its input.
        labels: [n].

    Returns:
        unsteady: RANDOM where the same images have other logits a second time, BATCH where one has
            others alone, else "". flat: the share of images, in [0, 1], at which the gradient of
            the cross-entropy is 0 in all pixels; "0" where no gradient can be computed. slopes:
            of each image, the length of that gradient and its product with random signs, as JSON.
    """

    def logits(x: Tensor) -> Tensor:
        return torch.cat(list(predictor.logits(x, size)))

    together = logits(images)
    unsteady = "" if close(logits(images), together) else RANDOM
    try:
        alone = torch.cat([logits(image[None]) for image in images])
    except Exception:  # such as batch normalisation's, of a single value
        alone = together[:0]
    unsteady = unsteady or ("" if close(alone, together) else BATCH)
    with frozen(predictor.model) as model, torch.enable_grad():
        x = (images.float() / 255).requires_grad_()
        try:
            loss = cross_entropy(model(x), labels, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, x)
        except Exception:  # no path from the logits to the pixels, or too little memory
            return {"unsteady": unsteady, "flat": "0", "slopes": "[]"}
    gradient = gradient.flatten(1).cpu()
    flat = float((gradient == 0).all(dim=1).float().mean())
    signs = torch.randn(gradient.shape[1], generator=torch.Generator().manual_seed(0)).sign()
    slopes = torch.stack([gradient.norm(dim=1), gradient @ signs], dim=1).tolist()
    return {"unsteady": unsteady, "flat": f"{flat:.3f}", "slopes": json.dumps(slopes)}


def _slopes_differ(before: str, now: str) -> bool:
    """Whether gradients, as `examine` describes them, differ by more than rounding: by a tenth of
    their length on more than half of the images, since single ones may lie on a kink."""
    a, b = (torch.tensor(json.loads(text)).reshape(-1, 2) for text in (before, now))
    if a.shape != b.shape:
        return True
    length = torch.maximum(a[:, :1], b[:, :1])
    return bool((((a - b).abs() > 0.1 * length).any(dim=1)).float().mean() > 0.5)


def _predictions(
    results: Results,
    runner: Runner,
    model: Model,
    predictor: Predictor,
    change: Change,
    advance: Advance,
) -> tuple[Tensor, dict[str, str]]:
    """A model's logits on all clean images [I, K], and what `examine` tells; or the classes that it
    predicts for changed ones [I]. Raises UserError, with the images, where logits on clean images
    are not finite."""
    evaluation, parts, notes = results.evaluation, list[Tensor](), dict[str, str]()
    size = model.view.input_size

    def step(batch: dict) -> None:
        images = batch["images"]
        for logits in predictor.logits(images, size, evaluation.interpolation):
            parts.append((logits if change == CLEAN else logits.argmax(dim=1)).cpu())
        if change == CLEAN and not notes:
            first = images[:EXAMINED]
            labels = evaluation.labels[: len(first)].to(first.device)
            notes.update(examine(predictor, first, size, labels))
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
    return values, notes


def _tried(results: Results, runner: Runner, model: Model, predictor: Predictor) -> Tensor:
    """The classes that a model predicts with other inputs, [inputs, n] int64; -1 where one fails.

    Its normalisation stays; pixels are changed such that its network gets the other input.
    """
    own, rows = model.preprocessing, list[Tensor]()

    def step(batch: dict) -> None:
        pixels = batch["images"].float() / 255

        def channels(values: Sequence[float]) -> Tensor:
            return torch.tensor(values, device=pixels.device).view(-1, 1, 1)

        for other in results.inputs(model):
            x = (pixels - channels(other.mean)) / channels(other.std)
            x = (x.flip(1) if other.reverse else x) * channels(own.std) + channels(own.mean)
            try:
                logits = torch.cat(list(predictor.logits(x, model.view.input_size)))
                rows.append(logits.argmax(dim=1).cpu())
            except Exception:  # of a network that checks its pixels
                rows.append(torch.full((len(pixels),), -1))

    def load(shard: int) -> dict:
        positions = tried_images(len(results.evaluation.subset)).tolist()
        return {"images": results.images_at(model.view, positions)}

    runner.run(step, [0], load, predictor)
    return torch.stack(rows)


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
