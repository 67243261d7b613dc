"""Crafting: a source's adversarial images, shard by shard."""

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch

from netkin.errors import UserError
from netkin.jobs.pool import Advance, Result
from netkin.passes import Item
from netkin.results import Results
from netkin.runner import Runner
from netkin.store.layout import shard_file
from netkin.store.lease import is_held, lease


def craft(results: Results, runner: Runner, item: Item, advance: Advance) -> Result:
    """Craft and store a source's shards, except those that another process crafts.

    A shard (see `netkin.results.Results.write_adversarial`) has the images that the source
    classifies correctly. It is written while the next one is crafted.

    Raises UserError where the attack returns another shape, NaN or pixels outside [0, 1].
    """
    start, model, evaluation = time.perf_counter(), item.of_model(), results.evaluation
    root, folder = results.store.root, results.adversarial_folder(model).claim()
    right, crafted = results.correct(model), list[int]()
    writing: Future | None = None

    def missing(shards: Sequence[int]) -> list[int]:
        return [shard for shard in shards if not shard_file(folder, shard).is_file()]

    def load(shard: int) -> dict:
        positions = torch.tensor(evaluation.shards[shard])
        chosen = right[positions]
        index, pixels = positions[chosen], results.pixels(model.view, shard)[chosen]
        labels = evaluation.labels[index]
        return {"shard": shard, "index": index, "pixels": pixels, "labels": labels}

    def attack(shard: dict) -> None:
        nonlocal writing
        file = shard_file(folder, shard["shard"])
        with ExitStack() as stack:
            held = stack.enter_context(lease(root, file))
            if not held or file.is_file():
                return
            index, clean = shard["index"].cpu(), shard["pixels"].cpu()
            parts = [clean[:0]]
            if len(index):
                keys, parts = evaluation.keys(model.name, index.tolist()), []
                for adversarial in crafter.craft(shard["pixels"], shard["labels"], keys):
                    parts.append(adversarial.cpu())
                    advance(len(adversarial))
            if writing is not None:
                writing.result()  # raises StoreError when the previous one could not be written
            content = (model, shard["shard"], torch.cat(parts), clean, index)
            writing = thread.submit(_write, results, content, stack.pop_all())
            crafted.append(shard["shard"])

    todo = missing(item.todo)
    free = [shard for shard in todo if not is_held(root, shard_file(folder, shard))]
    if free:
        crafter = runner.crafter(model.build(), evaluation)
        with ThreadPoolExecutor(1) as thread:
            runner.run(attack, free, load, crafter.classifier)
            if writing is not None:
                writing.result()
    taken = tuple(missing(todo))
    others = [s for s in item.todo if s not in crafted and s not in taken]
    advance(results.attackable(model, others))
    return Result(
        images=results.attackable(model, crafted),
        shards=len(crafted),
        seconds=time.perf_counter() - start,
        remaining=item.left(taken),
    )


def _write(results: Results, content: tuple, held: ExitStack) -> None:
    """Write a shard, then release its lease."""
    with held:
        results.write_adversarial(*content)


@dataclass(frozen=True, kw_only=True)
class Strengths(Result):
    """Of `images` attacked images, how many fool their own source: one number an attack."""

    fooled: tuple[int, ...]


def strengths(results: Results, runner: Runner, item: Item, advance: Advance) -> Strengths:
    """White-box success of `item.todo`, attacks with an eps, on some images; nothing is stored.

    They are those of at most `item.images` of the subset that the model, whose clean pass is done,
    classifies correctly: 8-bit ones, as crafting stores them, unless the evaluation's `dtype` is
    float32. Raises UserError where it classifies none correctly.
    """
    model, evaluation = item.of_model(), results.evaluation
    right = results.correct(model)
    tried = spread(len(right), len(right) if item.images is None else item.images)
    positions = [i for i in tried if right[i]]
    if not positions:
        raise UserError(
            f"{model.name} classifies none of {len(tried)} images correctly: there is nothing to "
            "attack"
        )
    runner = replace(runner, execution=replace(runner.execution, compile=False))
    clean = results.images_at(model.view, positions).to(runner.device)
    labels = evaluation.labels[positions].to(runner.device)
    keys = evaluation.keys(model.name, positions)
    classifier = model.build().eval().to(runner.device)
    predictor, crafter = runner.predictor(classifier), runner.crafter(classifier, evaluation)
    crafter.prepare(clean[:2], labels[:2])
    counts = []
    for attack in item.todo:
        crafter.evaluation = replace(evaluation, attack=attack)
        images = torch.cat(list(crafter.craft(clean, labels, keys)))
        with torch.no_grad():
            logits = torch.cat(list(predictor.logits(images, images.shape[-1])))
        counts.append(int((logits.argmax(dim=1) != labels).sum()))
        advance(1)
    return Strengths(images=len(positions), fooled=tuple(counts))


def spread(images: int, most: int) -> tuple[int, ...]:
    """At most `most` positions in a subset of some images, evenly spaced: subsets of class folders
    are in the order of the classes."""
    n = min(images, most)
    return tuple(i * images // n for i in range(n))
