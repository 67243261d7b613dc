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
from rich.console import Console

from experiments.cli.finish import finish, print_notes, terminal
from experiments.cli.keys import naming
from experiments.cli.members import build_members
from experiments.cli.runs import command, run_info, tracked
from experiments.cli.setting import (
    build_attack,
    build_setting,
    check_sources,
    open_pipeline,
    prepare,
)
from experiments.cli.study import described
from experiments.cli.suspects import Suspects
from experiments.cli.values import positive_int, resolved
from netkin.analysis.eps import NOISE, SUCCESS, sentence, smallest, strength_row
from netkin.analysis.summary import left_out
from netkin.attacks import Attack, SignNoise
from netkin.attacks.grid import levels
from netkin.attacks.units import fraction
from netkin.errors import UserError
from netkin.jobs.pool import Advance
from netkin.jobs.progress import Bars
from netkin.passes.setting import Setting
from netkin.passes.strength import Strengths, Trial, spread, strengths
from netkin.pipeline import Failure, Incomplete
from netkin.report.plots import Line, lines_figure
from netkin.report.study import Outputs, Section
from netkin.report.text import settings_text

LINES = 12
"""Models in the figure."""


def run(config: DictConfig) -> None:
    """The study, from a composed config."""
    values = eps_values(config)
    attacks = tuple(
        each for eps in values.values() for each in (at_eps(config, eps), SignNoise(eps))
    )
    setting, members = build_setting(config), build_members(config, at_least=1)
    check_sources(setting, members, members)
    most = positive_int(config.eps.images, "eps.images")
    info, console = run_info(config, setting, len(members)), terminal()
    suspects, failures, rows = Suspects(config, console), list[Failure](), list[dict]()
    print_notes(console, setting.images.notes)
    with tracked(config, info) as tracker:
        with Bars(console) as bars:
            setting = prepare(config, setting, members, bars)
            positions = spread(len(setting.subset), most)
            with open_pipeline(config, setting, members, tracker, bars, suspects) as pipeline:
                trials = [Trial(m, attacks, positions) for m in pipeline.clean(members)]
                failures += pipeline.failures
                for trial, result in pipeline.jobs.run(
                    *("eps", _strengths, trials, len(trials) * len(attacks)),
                    lambda trial, error: failures.append(Failure(trial.member, "eps", error)),
                ):
                    rows += [
                        strength_row(
                            *(trial.name, eps, text, result.images),
                            dict(zip((SUCCESS, NOISE), result.fooled[2 * i :], strict=False)),
                        )
                        for i, (text, eps) in enumerate(values.items())
                    ]
        if rows:
            order = [member.name for member in members]
            report(
                config,
                setting,
                pl.DataFrame(rows).sort(pl.col("model").replace_strict(order, range(len(order)))),
                Outputs(info.folder, tracker),
                console,
                suspects.sentences,
            )
        if failures:
            raise Incomplete(failures, None, len(members))


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


def _strengths(context: tuple, trial: Trial, advance: Advance) -> Strengths:
    return strengths(context[0], trial, advance)


def report(
    config: DictConfig,
    setting: Setting,
    table: pl.DataFrame,
    outputs: Outputs,
    console: Console,
    cautions: list[str],
) -> None:
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
    picture = outputs.figure("eps", eps_figure(table), table, caption)
    steps = {key: value for key, value in setting.attack.identity.items() if key != "eps"}
    dataset, models = setting.task.dataset, table["model"].n_unique()
    finish(
        *(outputs, console, f"Which eps for {models} models on {dataset}?"),
        f"{setting.attack.name} ({settings_text(steps)}) attacked up to {table['n'].max()} images "
        f"of {dataset} on each model at each eps, and noise of the same size changed the same "
        "images.",
        [
            *(sentence(table), *short_steps(setting.attack.identity, table), next_step),
            *left_out(setting.subset.skipped, setting.images.notes),
        ],
        [Section("White-box success by eps", (), {"": table}, [picture])],
        described(config),
        cautions,
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
