"""Which eps is large enough for these images and models?

Attacks some images of each member with the run's attack at several eps, and with noise of the same
size (every channel of every pixel eps up or down). An attack that does not nearly always fool its
own source confounds the scores of that source. An eps at which noise alone fools a member is too
large to say much about gradients. Nothing but the clean predictions is stored. Writes eps (figure
and table) and report.html.

On the 12 digits members, eps was chosen so: experiments/results/digits.md.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
from matplotlib.figure import Figure
from omegaconf import DictConfig
from scipy.stats import binomtest

from experiments.cli.members import build_members
from experiments.cli.runs import command
from experiments.cli.setting import Opened, build_attack, opened
from experiments.cli.values import changed, naming, resolved
from netkin.attacks import SignNoise
from netkin.attacks.grid import levels
from netkin.attacks.units import fraction
from netkin.errors import UserError, and_more
from netkin.passes import Item
from netkin.report.plots import Line, lines_figure
from netkin.report.sentences import Sentences
from netkin.report.study import Section
from netkin.report.text import settings_text

LINES = 12  # models in the figure
ENOUGH = 0.99  # white-box success that every model has to reach
SUCCESS, NOISE = "white_box_success", "noise_error"
text = Sentences(Path(__file__).with_suffix(".toml"))


def run(config: DictConfig) -> None:
    values = eps_values(config)
    attacks = tuple(
        each
        for eps in values.values()
        for each in (build_attack(changed(config, {"attack.eps": eps})), SignNoise(eps))
    )
    with opened(config, build_members(config, at_least=1)) as o:
        r = o.run
        with r.working():
            trials = [Item(model.name, model, attacks, config.eps.images) for model in r.clean()]
            found = r.stage("eps", "craft.strengths", trials, len(trials) * len(attacks))
        rows = [
            strength_row(trial.name, value, eps, result.images, result.fooled[2 * i : 2 * i + 2])
            for trial, result in sorted(found, key=lambda pair: r.models.index(pair[0].model))
            for i, (eps, value) in enumerate(values.items())
        ]
        if rows:
            report(o, pl.DataFrame(rows))
        r.raise_failures()


def eps_values(config: DictConfig) -> dict[str, float]:
    """The eps to try, as they are written, in increasing order.

    Raises UserError where they cannot be used.
    """
    values = resolved(config)["eps"]["values"]
    if not isinstance(values, list) or not values:
        raise UserError(f"eps.values must be a list such as [8/255,16/255], got {values!r}")
    if "eps" not in config.attack:
        raise UserError("experiment=eps needs an attack that has an eps, such as attack=pgd")
    parsed = {str(value): fraction(value, "eps.values") for value in values}
    if config.store.dtype == "uint8":
        with naming({"eps": "eps.values: eps"}):
            levels(min(parsed.values()))
    return dict(sorted(parsed.items(), key=lambda item: item[1]))


def strength_row(
    model: str, eps: float, written: str, images: int, fooled: Sequence[int]
) -> dict[str, str | float]:
    """A row of the table: model, eps (as written, such as 8/255), levels (of 255), n (images), and
    two rates, white-box success and error under noise, each with its 95% Wilson interval.

    `eps` is in pixels of [0, 1]; `fooled` has the numbers of images by the attack and by noise.
    """
    row: dict[str, str | float] = {"model": model, "eps": written, "levels": 255 * eps, "n": images}
    for name, count in zip((SUCCESS, NOISE), fooled, strict=True):
        interval = binomtest(count, images).proportion_ci(method="wilson")
        row |= {name: count / images, f"{name}_low": interval.low, f"{name}_high": interval.high}
    return row


def report(o: Opened, table: pl.DataFrame) -> None:
    """Write the table, the figure and the page, and print the answer."""
    eps, attack = smallest(table), o.run.evaluation.attack
    use = text("larger") if eps is None else text("use", command=command(f"attack.eps={eps}"))
    picture = o.outputs.figure("eps", eps_figure(table), table, text("caption"))
    steps = {key: value for key, value in attack.identity.items() if key != "eps"}
    how = {"attack": attack.name, "settings": settings_text(steps), "images": table["n"].max()}
    dataset = o.run.evaluation.task.dataset
    o.finish(
        f"Which eps for {table['model'].n_unique()} models on {dataset}?",
        text("question", dataset=dataset, **how),
        [sentence(table), *short_steps(attack.identity, table), use],
        [Section("White-box success by eps", (), {"": table}, [picture])],
    )


def smallest(table: pl.DataFrame) -> str | None:
    """The smallest eps at which success is `ENOUGH` on every model; None where it is at none."""
    lowest = table.group_by("levels", "eps").agg(pl.col(SUCCESS).min()).sort("levels")
    enough = lowest.filter(pl.col(SUCCESS) >= ENOUGH)
    return None if enough.is_empty() else enough["eps"][0]


def sentence(table: pl.DataFrame) -> str:
    """The choice in words, with what noise of that size does, or the models that are not fooled."""
    eps = smallest(table)
    if eps is not None:
        noise = table.filter(eps=eps).sort(NOISE, descending=True).row(0, named=True)
        return text("found", eps=eps, enough=ENOUGH, noise=noise[NOISE], model=noise["model"])
    largest = table.filter(pl.col("levels") == table["levels"].max())
    weak = largest.filter(pl.col(SUCCESS) < ENOUGH).sort(SUCCESS).to_dicts()
    names = and_more([f"{row['model']} ({row[SUCCESS]:.1%})" for row in weak])
    return text("none", largest=largest["eps"][0], enough=ENOUGH, names=names)


def short_steps(attack: Mapping[str, Any], table: pl.DataFrame) -> list[str]:
    """Says, if it is so, that an attack's steps do not reach the larger eps of the table."""
    steps, size = attack.get("steps"), attack.get("step_size")
    if steps is None or size is None:
        return []
    most = 255 * steps * size
    beyond = table.filter(pl.col("levels") > most * (1 + 1e-9)).sort("levels")["eps"]
    listed = ", ".join(dict.fromkeys(beyond))
    return [text("short", steps=steps, size=255 * size, most=most, eps=listed)] if listed else []


def eps_figure(table: pl.DataFrame) -> Figure:
    """White-box success and the effect of noise by eps, a line a model: of more than `LINES`, those
    that are the hardest to fool."""
    strength = table.group_by("model", maintain_order=True).agg(pl.col(SUCCESS).mean())
    names = strength.sort(SUCCESS, maintain_order=True)["model"].head(LINES).to_list()
    panels = []
    for column, label in ((SUCCESS, "white-box success (%)"), (NOISE, "error under noise (%)")):
        rates = [pl.col(column + end) * 100 for end in ("", "_low", "_high")]
        parts = {name: table.filter(model=name).select("levels", *rates) for name in names}
        panels.append((label, [Line(name, *part.to_numpy().T) for name, part in parts.items()]))
    return lines_figure(panels, "eps (of 255)", 3.2)
