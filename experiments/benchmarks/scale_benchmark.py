"""What do 12 to 1,000 models cost, beside the models' own passes? Time and memory by stage.

Made-up outcomes of N clustered models, in a process of its own for each N: scores, controls,
intervals, family means, clusters, and then the tables, figures and page of `experiment=pairwise`,
in a folder of their own. Also made-up files of outcomes. Writes scale.csv and storage.csv. Peak
memory is the process's resident set since its start, files that it has mapped among it.

On two CPU cores: experiments/results/landmarks.md.
"""

import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from omegaconf import DictConfig

from experiments.cli.finish import terminal
from experiments.cli.values import positive_int, run_folder
from netkin import similarity
from netkin.analysis import clusters, landmarks, summary
from netkin.analysis.groups import Draws
from netkin.errors import UserError
from netkin.passes.stored import outcome_array
from netkin.report.comparison import Comparison, relate
from netkin.report.controls import controls
from netkin.report.study import Outputs
from netkin.report.text import size
from netkin.similarity import Outcomes
from netkin.store.files import write
from netkin.store.outcomes import OutcomeStore, Part

FAMILY = 13
"""Models of a family, about as in timm."""


def run(config: DictConfig) -> None:
    """The study: a table of stages and models, and one of files."""
    options, console, folder = config.benchmark, terminal(), run_folder()
    for name in ("images", "draws", "landmarks"):
        positive_int(options[name], f"benchmark.{name}")
    for n in options.models:
        if positive_int(n, "benchmark.models") < options.landmarks + 2:
            raise UserError(
                f"benchmark.models must be {options.landmarks + 2} or more with "
                f"benchmark.landmarks={options.landmarks}, got {n}"
            )
    columns: dict[str, list[Any]] = {"stage": []}
    for n in options.models:
        rows = alone(timed, n, options.images, options.draws, options.landmarks, folder / str(n))
        names = ("stage", f"{n}_seconds", f"{n}_cpu_seconds", f"{n}_peak_gib")
        columns |= dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
        seconds, cpu = (sum(columns[f"{n}_{kind}seconds"]) for kind in ("", "cpu_"))
        page = folder / str(n) / "report.html"
        console.print(
            f"{n} models, {options.images} images, {options.draws} draws: {seconds:.1f} s "
            f"({cpu:.1f} s of CPU time), {max(columns[f'{n}_peak_gib']):.2f} GiB; {page} "
            f"({size(page.stat().st_size)})"
        )
        for stage, seconds, cpu, peak in rows:
            console.print(f"  {stage:<36} {seconds:8.1f} s {cpu:8.1f} s {peak:6.2f} GiB")
        write(folder / "scale.csv", pl.DataFrame(columns).write_csv)
    for n in options.stored:
        row = alone(stored, positive_int(n, "benchmark.stored"), options.images)
        console.print(
            f"{n} x {n} pairs: {row['files']:,} files, {size(row['bytes'])}, "
            f"{row['write_seconds']:.1f} s to write, {row['check_seconds']:.1f} s to check, "
            f"{row['read_seconds']:.1f} s to read"
        )
        write(folder / f"storage_{n}.csv", pl.DataFrame([row]).write_csv)
    console.print(f"Tables   {', '.join(map(str, sorted(folder.glob('*.csv'))))}")


def alone(function: Callable, *arguments: Any) -> Any:
    """The result of a function in a fresh process, so that the peak of memory is its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def made_up(models: int, images: int, seed: int = 0) -> tuple[Outcomes, list[str]]:
    """Outcomes of clustered models, and their families: the nearer two families are on a circle,
    the more often their models fool each other."""
    rng = np.random.default_rng(seed)
    family = np.arange(models) * max(models // FAMILY, 3) // models
    angle = 2 * np.pi * family / (family.max() + 1) + rng.normal(0, 0.1, models)
    near = np.exp(2 * (np.cos(angle[:, None] - angle) - 1))
    strength, brittle = rng.uniform(0.6, 1.4, (2, models))
    rate = 0.05 + 0.35 * near + 0.15 * (family[:, None] == family)
    rate *= strength[:, None] * brittle
    hard = rng.uniform(0.2, 1.8, images).astype(np.float32)
    fooled = outcome_array((models, models, images))
    for a in range(models):
        chance = rng.random((models, images), dtype=np.float32)
        fooled[a] = chance < rate[a, :, None].astype(np.float32) * hard
        fooled[a, a] = True
    names = tuple(f"family{f:02d}_model{i:04d}" for i, f in enumerate(family))
    return Outcomes(
        names,
        tuple(f"image/{i:05d}" for i in range(images)),
        rng.random((models, images)) < 0.8,
        fooled,
        rng.random((models, images)) < 0.05 * brittle[:, None],
    ), [f"family{f:02d}" for f in family]


def timed(
    models: int, images: int, draws: int, marks: int, folder: Path
) -> list[tuple[str, float, float, float]]:
    """(stage, seconds, seconds of CPU time, peak GiB) of made-up models; writes their page."""
    rows = []

    def stage(name: str, function: Callable[[], Any]) -> Any:
        start, cpu = time.perf_counter(), time.process_time()
        result = function()
        times = time.perf_counter() - start, time.process_time() - cpu
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        rows.append((name, *times, peak))
        return result

    outcomes, families = stage("outcomes", lambda: made_up(models, images))
    paper = stage("scores", lambda: similarity.matrix(outcomes))
    control = stage("noise control, effects", lambda: controls(outcomes, families))
    drawn = Draws(outcomes, draws)
    kinds = dict(zip(outcomes.members, families, strict=True))
    sizes = [25_000_000] * models, [224] * models
    table = summary.model_table(outcomes, paper, families, *sizes)
    relations = stage(
        "intervals of pairs and family means",
        lambda: relate(control, outcomes, paper, drawn, similarity.EPS_S, kinds, table),
    )
    answer = stage(
        "answer",
        lambda: summary.answer(
            relations.pairs, table, relations.family_means, control.scores, drawn
        ),
    )
    k = clusters.choose_k(None, control.scores)[0]
    stage("clusters", lambda: clusters.spectral(control.scores, k))
    stage(f"{marks} landmarks", lambda: predicted(control.scores, marks))
    title = f"How related are {models} made-up models?"
    empty = pl.DataFrame()
    comparison = Comparison(
        title, title, [*answer, *control.answer()], relations, empty, empty, [], None, control
    )
    outputs = Outputs(folder)
    stage("tables and figures", lambda: comparison.write(outputs))
    stage(
        "page",
        lambda: outputs.report(title, title, comparison.answer, comparison.sections(folder), ""),
    )
    return rows


def predicted(scores: NDArray[np.float64], marks: int) -> landmarks.Completed:
    """All scores, predicted from those with random models."""
    drawn = np.random.default_rng(0).choice(len(scores), marks, replace=False)
    return landmarks.complete(scores, drawn.tolist())


def stored(models: int, images: int) -> dict[str, Any]:
    """Files, bytes, and the seconds to write the outcomes of all pairs, to look them up, and to
    read what scores need of them."""
    names = [f"model{i:04d}" for i in range(models)]
    ids = [f"val/n{i % 1000:08d}/ILSVRC2012_val_{i:08d}" for i in range(images)]
    hashes = {name: f"{i:064d}" for i, name in enumerate(names)}
    parts = {name: Part(hashes[name], 0, images) for name in names}
    with tempfile.TemporaryDirectory(prefix="netkin-scale-") as scratch:
        table, times = OutcomeStore(Path(scratch)), [0.0, 0.0, 0.0]
        for i, target in enumerate(names):
            rows = made_up_rows(i, names, ids)
            times[0] += seconds_of(lambda t=target, r=rows: table.write(t, hashes[t], parts, r))
        for target in names:
            times[1] += seconds_of(lambda t=target: table.covered(t, hashes[t], hashes))
            times[2] += seconds_of(lambda t=target: table.fooled(t, names, ids))
        files = list(table.path.rglob("*.parquet"))
        return {
            "files": len(files),
            "bytes": sum(file.stat().st_size for file in files),
            **dict(zip(("write_seconds", "check_seconds", "read_seconds"), times, strict=True)),
        }


def made_up_rows(seed: int, sources: list[str], ids: list[str]) -> dict[str, pl.DataFrame]:
    """A target's rows on 64% of each source's images."""
    rng, tables = np.random.default_rng(seed), {}
    for source in sources:
        chosen = np.sort(rng.choice(len(ids), int(0.64 * len(ids)), replace=False))
        label = chosen % 1000
        other = rng.integers(0, 1000, len(chosen))
        prediction = np.where(rng.random(len(chosen)) < 0.3, other, label)
        tables[source] = pl.DataFrame(
            {"image_id": [ids[i] for i in chosen], "label": label, "prediction": prediction},
            schema={"image_id": pl.String, "label": pl.Int32, "prediction": pl.Int32},
        )
    return tables


def seconds_of(work: Callable[[], object]) -> float:
    """Seconds of a call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
