"""How related are the members of a zoo? (Sec. 2, Eq. 1; Fig. D.2.)

Trains members that lack weights, attacks each, runs each on all others' adversarial images, and
writes similarity.csv, pairs.csv, models.csv, families.csv, the heatmap and report.html.

On the 12 digits members (500 images, PGD-50): see the README and experiments/RESULTS.md.
"""

from pathlib import Path

import numpy as np
import polars as pl
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from experiments import setup
from experiments.matrix import measure
from netkin import similarity
from netkin.analysis import summary
from netkin.progress import Bars
from netkin.report.examples import examples
from netkin.report.figures import similarity_heatmap
from netkin.report.page import Page, fraction_text, render
from netkin.report.study import versions
from netkin.similarity import Outcomes
from netkin.store import write
from netkin.tracking import Tracker, track
from netkin.transfer.resize import resize_errors
from netkin.transfer.setting import Setting
from netkin.transfer.stored import params
from netkin.zoo.build import knows_more, preprocessing
from netkin.zoo.member import Member


def run(config: DictConfig) -> None:
    """The study, from a composed config."""
    setting = setup.build_setting(config)
    members = setup.build_members(config)
    info = setup.run_info(config, setting, len(members))
    console = Console(soft_wrap=True)
    with track(setup.resolved(config.logger), info) as tracker:
        with Bars(console) as bars:
            setting, outcomes = measure(config, setting, members, tracker, bars)
        said = report(config, setting, members, outcomes, info.folder, tracker)
    for paragraph in said:
        console.print(f"\n{paragraph}", highlight=False)
    console.print(f"\nReport   {info.folder / 'report.html'}", highlight=False)
    tables = ", ".join(sorted(file.name for file in info.folder.glob("*.csv")))
    console.print(f"Tables   {info.folder}/{tables}", highlight=False)
    console.print(f"Figure   {info.folder}/similarity.png, .pdf", highlight=False)


def report(
    config: DictConfig,
    setting: Setting,
    members: list[Member],
    outcomes: Outcomes,
    folder: Path,
    tracker: Tracker,
) -> list[str]:
    """Write tables, figure and page, log them, and return the answer in words."""
    eps_s = config.score.eps_s
    scores = similarity.matrix(outcomes, eps_s)
    names, families = list(outcomes.members), [member.family for member in members]
    draws = similarity.bootstrap(outcomes, config.score.bootstrap, eps_s=eps_s)
    models = summary.model_table(
        outcomes,
        scores,
        families,
        [params(setting, member) for member in members],
        [preprocessing(member, setting.task).view.input_size for member in members],
    )
    tables = {
        "similarity": pl.DataFrame(
            {"": names, **{name: scores[:, i] for i, name in enumerate(names)}}
        ),
        "pairs": similarity.pairs(outcomes, eps_s),
        "models": models,
        "families": similarity.family_means(scores, families, draws),
    }
    resize = resize_errors(setting, members)
    if resize.height:  # there is more than one geometry
        tables["resize_errors"] = resize
    for name, table in tables.items():
        write(folder / f"{name}.csv", table.write_csv)
        tracker.table(f"tables/{name}", table)
    png, pdf = similarity_heatmap(scores, names, families, folder / "similarity")
    tracker.figure("figures/similarity", png)
    said = summary.answer(tables["pairs"], models, tables["families"], scores, draws)
    said += summary.resize(resize)
    task = setting.task
    partly = [m.name for m in members if knows_more(m, task)]
    said += summary.part_of_imagenet(partly, task.num_classes)
    said += summary.left_out(setting.subset.skipped)
    page = Page(
        title=f"How related are {len(names)} models on {setting.task.dataset}?",
        question=_question(setting),
        answer=said,
        scores=scores,
        names=names,
        families=families,
        pairs=tables["pairs"],
        models=models,
        family_means=tables["families"],
        examples=examples(setting, members),
        eps=getattr(setting.attack.attack, "eps", None) or 1.0,
        config=OmegaConf.to_yaml(config, resolve=True),
        versions=versions(),
        files=[*(f"{name}.csv" for name in tables), png.name, pdf.name],
    )
    write(folder / "report.html", lambda file: file.write_text(render(page), encoding="utf-8"))
    off_diagonal = scores[~np.eye(len(names), dtype=bool)]
    tracker.metrics(
        {
            "similarity/mean": float(off_diagonal.mean()),
            "similarity/min": float(off_diagonal.min()),
            "similarity/max": float(off_diagonal.max()),
        }
    )
    tracker.artifact(
        f"similarity-{setting.task.dataset}-{setting.attack.name}",
        "similarity",
        [folder / f"{name}.csv" for name in tables],
    )
    return said


def _question(setting: Setting) -> str:
    attack = setting.attack
    settings = ", ".join(
        f"{key} = {fraction_text(value) if isinstance(value, float) else value}"
        for key, value in attack.identity.items()
        if not key.startswith("_")
    )
    return (
        "Two networks are related when adversarial images made on one fool the other. Each model "
        f"was attacked with {attack.name} ({settings}) on the images of {setting.task.dataset} "
        f"({len(setting.subset)} in all) that it classifies correctly, and every other model was "
        "run on the result, where it had been correct, too."
    )
