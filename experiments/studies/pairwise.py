"""How related are the members of a zoo? (Sec. 2, Eq. 1; Fig. D.2.)

Trains members that lack weights, attacks each, runs each on all others' adversarial images, and
writes similarity.csv, pairs.csv, models.csv, families.csv, the heatmap and report.html.

On the 12 digits members (500 images, PGD-50): see the README and experiments/results/digits.md.
"""

import itertools
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from experiments.common import setting as setup
from experiments.common.study import attacked
from netkin import similarity
from netkin.analysis import summary
from netkin.jobs.pool import Jobs
from netkin.jobs.progress import Bars
from netkin.pipeline import Incomplete, measure
from netkin.report.examples import examples
from netkin.report.figures import similarity_heatmap
from netkin.report.page import Page, render
from netkin.report.study import versions
from netkin.similarity import Outcomes
from netkin.store.layout import write
from netkin.tracking import Tracker, track
from netkin.training.weights import Training
from netkin.transfer.resize import resize_errors
from netkin.transfer.setting import Setting
from netkin.transfer.stored import params
from netkin.zoo.build import knows_more, preprocessing
from netkin.zoo.member import Member


def run(config: DictConfig) -> None:
    """The study, from a composed config."""
    setting = setup.build_setting(config)
    members = setup.build_members(config)
    setup.check_sources(setting, members, members)
    info = setup.run_info(config, setting, len(members))
    console = Console(soft_wrap=True)
    for note in summary.left_out((), setting.images.notes):
        console.print(note, highlight=False, markup=False)
    with track(setup.resolved(config.logger), info) as tracker:
        with Bars(console) as bars:
            setting = setup.prepare(config, setting, members, bars)
            training = setup.build_training(config, setting, members, bars)
            if training:
                of_training = set(training.images.notes) - set(setting.images.notes)
                for note in summary.left_out((), sorted(of_training)):
                    console.print(note, highlight=False, markup=False)
            with setup.build_jobs(config, (setting, training), bars) as jobs:
                outcomes, failures = measured(setting, members, training, jobs, tracker)
        said = report(config, setting, members, outcomes, failures, info.folder, tracker)
    for paragraph in said:
        console.print(f"\n{paragraph}", highlight=False)
    console.print(f"\nReport   {info.folder / 'report.html'}", highlight=False)
    tables = ", ".join(sorted(file.name for file in info.folder.glob("*.csv")))
    console.print(f"Tables   {info.folder}/{tables}", highlight=False)
    console.print(f"Figure   {info.folder}/similarity.png, .pdf", highlight=False)
    if failures:
        raise failures


def measured(
    setting: Setting,
    members: list[Member],
    training: Training | None,
    jobs: Jobs,
    tracker: Tracker,
) -> tuple[Outcomes, Incomplete | None]:
    """The outcomes, of those members that did not fail, and what is to be said of the others."""
    try:
        return measure(setting, members, training, jobs, tracker), None
    except Incomplete as error:
        if error.outcomes is None:
            raise
        return error.outcomes, error


def report(
    config: DictConfig,
    setting: Setting,
    members: list[Member],
    outcomes: Outcomes,
    failures: Incomplete | None,
    folder: Path,
    tracker: Tracker,
) -> list[str]:
    """Write tables, figure and page, log them, and return the answer in words.

    Members that failed have empty rows in similarity.csv and models.csv, and say why in
    failures.csv.
    """
    eps_s = config.score.eps_s
    everyone, everyones = [member.name for member in members], [member.family for member in members]
    members = [member for member in members if member.name in outcomes.members]
    scores = similarity.matrix(outcomes, eps_s)
    families = [member.family for member in members]
    draws = similarity.bootstrap(outcomes, config.score.bootstrap, eps_s=eps_s)
    models = summary.model_table(
        outcomes,
        scores,
        families,
        [params(setting, member) for member in members],
        [preprocessing(member, setting.task).view.input_size for member in members],
    )
    matrix = with_gaps(scores, [everyone.index(name) for name in outcomes.members], len(everyone))
    columns = pl.DataFrame({name: matrix[:, i] for i, name in enumerate(everyone)})
    tables = {
        "similarity": columns.fill_nan(None).insert_column(0, pl.Series("", everyone)),
        "pairs": all_pairs(similarity.pairs(outcomes, eps_s), everyone),
        "models": pl.DataFrame({"model": everyone, "family": everyones}).join(
            models.drop("family"), on="model", how="left", maintain_order="left"
        ),
        "families": similarity.family_means(scores, families, draws),
    }
    resize = resize_errors(setting, members)
    if resize.height:  # there is more than one geometry
        tables["resize_errors"] = resize
    if failures:
        tables["failures"] = pl.DataFrame(
            [
                {"model": failure.member.name, "stage": failure.stage, "reason": failure.reason}
                for failure in failures.failures
            ]
        )
    for name, table in tables.items():
        write(folder / f"{name}.csv", table.write_csv)
        tracker.table(f"tables/{name}", table)
    png, pdf = similarity_heatmap(matrix, everyone, everyones, folder / "similarity")
    tracker.figure("figures/similarity", png)
    known = tables["pairs"].drop_nulls("score")
    said = summary.answer(known, models, tables["families"], scores, draws)
    said += summary.resize(resize)
    task = setting.task
    partly = [m.name for m in members if knows_more(m, task)]
    said += summary.part_of_imagenet(partly, task.num_classes)
    said += summary.left_out(setting.subset.skipped, setting.images.notes)
    said += _failed(failures)
    page = Page(
        title=f"How related are {len(everyone)} models on {setting.task.dataset}?",
        question=_question(setting),
        answer=said,
        scores=matrix,
        names=everyone,
        families=everyones,
        pairs=tables["pairs"],
        models=tables["models"],
        family_means=tables["families"],
        examples=examples(setting, members),
        eps=getattr(setting.attack.attack, "eps", None) or 1.0,
        config=OmegaConf.to_yaml(config, resolve=True),
        versions=versions(),
        files=[*(f"{name}.csv" for name in tables), png.name, pdf.name],
    )
    write(folder / "report.html", lambda file: file.write_text(render(page), encoding="utf-8"))
    off_diagonal = scores[~np.eye(len(scores), dtype=bool)]
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


def with_gaps(scores: NDArray[np.float64], places: list[int], n: int) -> NDArray[np.float64]:
    """The scores of some of n models, at their places among all, and NaN for the others, [n, n]."""
    matrix = np.full((n, n), np.nan)
    matrix[np.ix_(places, places)] = scores
    return matrix


def all_pairs(known: pl.DataFrame, names: list[str]) -> pl.DataFrame:
    """The rows of known pairs, and in their places rows without score of all others: n = 0."""
    pairs = pl.DataFrame(list(itertools.combinations(names, 2)), schema=["a", "b"], orient="row")
    table = pairs.join(known, on=["a", "b"], how="left", maintain_order="left")
    return table.with_columns(pl.col("n").fill_null(0))


def _failed(failures: Incomplete | None) -> list[str]:
    if failures is None:
        return []
    return [
        f"{failure.member.name} has no scores: it failed in {failure.stage}. {failure.reason}"
        for failure in failures.failures
    ]


def _question(setting: Setting) -> str:
    return (
        "Two networks are related when adversarial images made on one fool the other. Each model "
        f"was attacked with {attacked(setting)} on the images of {setting.task.dataset} "
        f"({len(setting.subset)} in all) that it classifies correctly, and every other model was "
        "run on the result, where it had been correct, too."
    )
