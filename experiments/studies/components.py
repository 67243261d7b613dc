"""Which of the 13 architectural components does each model have? (Tab. 1, B.2, B.3.)

They are read off the models: nothing is downloaded or run, a forward pass is traced on torch's meta
device. Writes components.csv and report.html; with `components=path.csv` the table is compared with
that file, cell by cell, in agreement.csv and disagreements.csv. On the paper's 69 models:
experiments/results/components.md.
"""

from omegaconf import DictConfig, OmegaConf

from experiments.cli.components import PUBLISHED, from_file, read_off
from experiments.cli.finish import finish, printed, terminal
from experiments.cli.members import build_members
from experiments.cli.runs import info, tracked
from experiments.cli.values import run_folder
from netkin.analysis.components import agreement
from netkin.jobs.progress import Bars
from netkin.report.study import Outputs, Section
from netkin.zoo.member import Task

USED = ("experiment", "model", "components", "logger")


def run(config: DictConfig) -> None:
    members = build_members(config, at_least=1)
    names = [member.name for member in members]
    theirs = None if config.components is None else from_file(config.components, names)
    console = terminal()
    used = OmegaConf.masked_copy(config, list(USED))
    run_info = info(used, config.dataset.name, f"{len(names)} models")
    with tracked(config, run_info) as tracker:
        outputs = Outputs(run_folder(), tracker)
        with Bars(console) as bars:
            ours = outputs.table("components", read_off(members, _task(config), bars))
        console.print(printed(ours, width=console.width))
        answer = [
            f"The components of {len(names)} model{'s' * (len(names) != 1)}, read off the models "
            "themselves: see the table (components.csv)."
        ]
        sections = [Section("Components", (), {"": ours})]
        if theirs is not None:
            counts, differ = agreement(ours, theirs)
            outputs.table("agreement", counts)
            outputs.table("disagreements", differ)
            cells, same = int(counts["cells"].sum()), int(counts["agree"].sum())
            answer.append(
                f"{same} of {cells} cells ({same / cells:.1%}) agree with {config.components}."
                if cells
                else f"{config.components} has none of the components."
            )
            tracker.summary({"components/agreement": same / cells if cells else 0.0})
            sections.append(Section("Agreement", answer[1:], {"By component": counts}))
            sections.append(Section("Disagreements", (), {"Cells that differ": differ}))
            for row in differ.iter_rows(named=True):
                values = f"{row['ours']}, in the file {row['theirs']}"
                console.print(f"{row['model']}, {row['component']}: {values}")
        finish(
            outputs,
            console,
            f"Which components do {len(names)} models have?",
            "The 13 architectural components of each model (Tab. 1), from a traced forward pass "
            "and the tree of its modules.",
            answer,
            sections,
            OmegaConf.to_yaml(used, resolve=True),
        )


def _task(config: DictConfig) -> Task:
    """What the dataset determines about how a model is built; no image is needed."""
    dataset = config.dataset
    if dataset.weights == "pretrained":
        return PUBLISHED
    return Task(
        dataset.name,
        1000,  # the number of classes changes no component
        dataset.weights,
        dataset.input_size,
        tuple(OmegaConf.to_container(dataset.fit, resolve=True)),  # type: ignore[arg-type]
    )
