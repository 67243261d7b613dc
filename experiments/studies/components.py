"""What are models made of? The 13 components of each (Tab. 1, B.2, B.3), read off the model itself.

Nothing is downloaded or run: a forward pass is traced on torch's meta device. Writes
components.csv; with `components=path.csv` it is compared with that table, cell by cell, in
agreement.csv and disagreements.csv. On the paper's 69 models: experiments/results/components.md.
"""

import polars as pl
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from experiments.common.members import build_members
from experiments.common.study import Study
from experiments.common.values import positive_int, resolved, run_folder
from netkin.analysis.components import agreement, read_components, rows_of
from netkin.errors import UserError
from netkin.jobs.progress import Bars
from netkin.report.study import Outputs, Section
from netkin.tracking import RunInfo, track
from netkin.zoo.build import Task
from netkin.zoo.components import component_table
from netkin.zoo.member import Member, parse_members

PUBLISHED = Task("imagenet", 1000, "pretrained")
USED = ("experiment", "model", "components", "logger")
WIDE = 500  # characters: a table is not cut to fit a terminal
ACROSS_UP_TO = 4
"""Models that are printed as columns; more are printed as rows."""


def run(config: DictConfig) -> None:
    """The study, from a composed config."""
    members = build_members(config, at_least=1)
    theirs = None if config.components is None else read_components(config.components)
    names = [member.name for member in members]
    if theirs is not None:
        theirs = rows_of(theirs, names, f"components={config.components}")
    console = Console(soft_wrap=True)
    used = OmegaConf.masked_copy(config, list(USED))
    with track(resolved(config.logger), _info(config, used, len(names))) as tracker:
        outputs = Outputs(run_folder(), tracker)
        with Bars(console) as bars:
            ours = outputs.table("components", _read(members, _task(config), bars))
        Console(width=WIDE).print(_printed(ours))
        said = [f"The components of {len(names)} models, read off the models themselves."]
        sections = [Section("Components", (), {"": ours})]
        if theirs is not None:
            counts, differ = agreement(ours, theirs)
            outputs.table("agreement", counts)
            outputs.table("disagreements", differ)
            cells, same = int(counts["cells"].sum()), int(counts["agree"].sum())
            said.append(
                f"{same} of {cells} cells ({same / cells:.1%}) agree with {config.components}."
                if cells
                else f"{config.components} has none of the components."
            )
            tracker.metrics({"components/agreement": same / cells if cells else 0.0})
            sections.append(Section("Agreement", said[1:], {"By component": counts}))
            sections.append(Section("Disagreements", (), {"Cells that differ": differ}))
            for row in differ.iter_rows(named=True):
                console.print(
                    f"{row['model']}, {row['component']}: {row['ours']}; there {row['theirs']}",
                    highlight=False,
                )
        report = outputs.report(
            f"What are {len(names)} models made of?",
            "The 13 architectural components of each model (Tab. 1), from a traced forward pass "
            "and the tree of its modules.",
            said,
            sections,
            OmegaConf.to_yaml(used, resolve=True),
        )
    for paragraph in said:
        console.print(f"\n{paragraph}", highlight=False)
    console.print(f"\nReport   {report}", highlight=False)
    tables = ", ".join(file for file in outputs.files if file.endswith(".csv"))
    console.print(f"Tables   {outputs.folder}/{tables}", highlight=False)


def components_of(s: Study) -> pl.DataFrame:
    """The components of a study's models: of `components=path.csv`, or read off the models.

    Raises UserError where neither is to be had.
    """
    path = s.config.components
    if path is not None:
        return rows_of(read_components(path), s.names, f"components={path}")
    if s.measured is not None:
        members, task = s.measured.members, s.measured.setting.task
    else:
        known = resolved(s.config.model).get("known")
        try:
            members, task = parse_members(s.names, known, at_least=1), PUBLISHED
        except UserError as error:
            raise UserError(
                f"the components of the matrix's models are not known ({error}); give them with "
                "components=path.csv, or name the model list that has them (model=imagenet69)"
            ) from None
    with Bars(s.console) as bars:
        return _read(members, task, bars)


def _read(members: list[Member], task: Task, bars: Bars) -> pl.DataFrame:
    bars.start("components", [member.name for member in members], len(members))
    table = component_table(members, task, lambda _: bars.advance("components", 1))
    bars.end("components")
    return table


def _task(config: DictConfig) -> Task:
    """The dataset's part in how a model is built; its images are not needed."""
    dataset = config.dataset
    if dataset.weights == "pretrained":
        return PUBLISHED
    return Task(
        dataset.name,
        1000,  # how many classes changes no component
        dataset.weights,
        positive_int(dataset.input_size, "dataset.input_size"),
        tuple(OmegaConf.to_container(dataset.fit, resolve=True)),  # type: ignore[arg-type]
    )


def _info(config: DictConfig, used: DictConfig, models: int) -> RunInfo:
    name = config.experiment.name
    return RunInfo(
        folder=run_folder(),
        config=resolved(used),
        group=f"{name}-{config.dataset.name}",
        job_type=name,
        name=f"{models}-models",
        tags=(name, config.dataset.name),
    )


def _printed(table: pl.DataFrame) -> Table:
    """Models as columns while they are few, else as rows."""
    names, components = table.to_series(0).to_list(), table.columns[1:]
    across = len(names) <= ACROSS_UP_TO
    printed = Table(box=None, pad_edge=False)
    for header in ["", *(names if across else components)]:
        printed.add_column(header, no_wrap=True)
    for i, name in enumerate(names):
        if not across:
            printed.add_row(name, *table.row(i)[1:])
    for component in components if across else ():
        printed.add_row(component, *table[component])
    return printed
