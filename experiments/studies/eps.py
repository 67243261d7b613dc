"""Which eps is large enough for these images and models?

Attacks some images of each member with the run's attack at several eps, and with noise of the same
size (every channel of every pixel eps up or down). An attack that does not nearly always fool its
own source confounds the scores of that source. An eps at which noise alone fools a member is too
large to say much about gradients. Nothing but the clean predictions is stored. Writes eps (figure
and table) and report.html.

On the 12 digits members, eps was chosen so: experiments/results/digits.md.
"""

from collections.abc import Mapping
from typing import Any

import polars as pl
from matplotlib.figure import Figure
from omegaconf import DictConfig, OmegaConf

from experiments.cli.members import build_members
from experiments.cli.runs import command
from experiments.cli.setting import Opened, build_attack, opened
from experiments.cli.values import naming, resolved
from netkin.analysis.eps import NOISE, SUCCESS, sentence, smallest, strength_row
from netkin.attacks import Attack, SignNoise
from netkin.attacks.grid import levels
from netkin.attacks.units import fraction
from netkin.errors import UserError
from netkin.passes import Item
from netkin.report.plots import Line, lines_figure
from netkin.report.study import Section
from netkin.report.text import settings_text

LINES = 12
"""Models in the figure."""


def run(config: DictConfig) -> None:
    """The study, from a composed config."""
    values = eps_values(config)
    attacks = tuple(
        each for eps in values.values() for each in (at_eps(config, eps), SignNoise(eps))
    )
    most = config.eps.images
    with opened(config, build_members(config, at_least=1)) as o:
        r, rows = o.run, list[dict]()
        with r.working():
            trials = [Item(model.name, model, attacks, most) for model in r.clean()]
            found = r.stage("eps", "craft.strengths", trials, len(trials) * len(attacks))
        for trial, result in found:
            rows += [
                strength_row(
                    *(trial.name, eps, text, result.images),
                    dict(zip((SUCCESS, NOISE), result.fooled[2 * i :], strict=False)),
                )
                for i, (text, eps) in enumerate(values.items())
            ]
        if rows:
            order = [model.name for model in r.models]
            table = pl.DataFrame(rows)
            report(o, table.sort(pl.col("model").replace_strict(order, range(len(order)))))
        o.run.raise_failures()


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


def at_eps(config: DictConfig, eps: float) -> Attack:
    """The run's attack with another eps."""
    changed = config.copy()
    OmegaConf.update(changed, "attack.eps", eps)
    return build_attack(changed)


def report(o: Opened, table: pl.DataFrame) -> None:
    """Write the table, the figure and the page, and print the answer."""
    caption = (
        "White-box success, and errors under noise of the same size, over images that the model "
        "classifies correctly, with 95% Wilson intervals."
    )
    eps = smallest(table)
    next_step = (
        "Try larger eps.values, or more or larger steps of the attack."
        if eps is None
        else f"To compare the models with it: {command(f'attack.eps={eps}')}"
    )
    picture = o.outputs.figure("eps", eps_figure(table), table, caption)
    attack, dataset = o.run.evaluation.attack, o.run.evaluation.task.dataset
    steps = {key: value for key, value in attack.identity.items() if key != "eps"}
    o.finish(
        f"Which eps for {table['model'].n_unique()} models on {dataset}?",
        f"{attack.name} ({settings_text(steps)}) attacked up to {table['n'].max()} images "
        f"of {dataset} on each model at each eps, and noise of the same size changed the same "
        "images.",
        [sentence(table), *short_steps(attack.identity, table), next_step],
        [Section("White-box success by eps", (), {"": table}, [picture])],
    )


def short_steps(attack: Mapping[str, Any], table: pl.DataFrame) -> list[str]:
    """Says, if it is so, that an attack's steps do not reach the larger eps of the table."""
    steps, size = attack.get("steps"), attack.get("step_size")
    if steps is None or size is None:
        return []
    levels = 255 * steps * size
    beyond = table.filter(pl.col("levels") > levels * (1 + 1e-9)).sort("levels")["eps"]
    if beyond.is_empty():
        return []
    return [
        f"{steps} steps of {255 * size:.3g}/255 go {levels:.3g}/255 at most, less than eps = "
        f"{', '.join(dict.fromkeys(beyond))}: use more steps or a larger attack.step_size there."
    ]


def eps_figure(table: pl.DataFrame) -> Figure:
    """White-box success and the effect of noise by eps, a line a model: of more than `LINES`, those
    that are the hardest to fool."""
    strength = table.group_by("model", maintain_order=True).agg(pl.col(SUCCESS).mean())
    names = strength.sort(SUCCESS, maintain_order=True)["model"].head(LINES).to_list()
    labels = {SUCCESS: "white-box success (%)", NOISE: "error under noise (%)"}
    panels = []
    for column, label in labels.items():
        lines = []
        for name in names:
            rows = table.filter(model=name)
            rates = [100 * rows[column + end].to_numpy() for end in ("", "_low", "_high")]
            lines.append(Line(name, rows["levels"].to_numpy(), *rates))
        panels.append((label, lines))
    return lines_figure(panels, "eps (of 255)", 3.2)
