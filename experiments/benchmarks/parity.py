"""Do the attacks equal other implementations, what do they cost, and does Patch-Fool succeed?

Writes parity.csv (PGD and FGSM against foolbox, MIM against its published definition and, where it
is installed, torchattacks, AutoAttack against its authors' package called directly), patchfool.csv
(accuracy by the number, choice and content of patches), cost.csv (images a second) and a figure of
each attack's change of an image.

Measured on the digits zoo: see experiments/results/attacks.md.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import torch
from hydra.utils import instantiate
from matplotlib.figure import Figure
from omegaconf import DictConfig, OmegaConf
from rich.table import Table
from scipy.stats import binomtest
from torch import Tensor, nn

from experiments.benchmarks.batch import Batch, correct_batch
from experiments.benchmarks.references import COMPARISONS, require_foolbox
from experiments.cli.devices import build_jobs, device
from experiments.cli.finish import terminal
from experiments.cli.keys import naming_group
from experiments.cli.members import build_members
from experiments.cli.runs import run_info, tracked
from experiments.cli.setting import build_setting, open_pipeline, prepare
from experiments.cli.values import lists, positive_int, whole_numbers
from netkin.attacks import Attack, Clean, PatchFool
from netkin.attacks.frozen import frozen
from netkin.attacks.grid import to_grid
from netkin.attacks.units import fraction
from netkin.errors import OutputsError, UserError, near
from netkin.jobs.devices import seconds_of
from netkin.jobs.pool import Advance
from netkin.jobs.progress import Bars
from netkin.jobs.results import Result
from netkin.passes.setting import Setting
from netkin.report.plots import images_figure
from netkin.report.style import save
from netkin.store.files import write
from netkin.tracking import Tracker
from netkin.zoo import execution
from netkin.zoo.member import Member

CONFIGS = Path(__file__).parents[2] / "conf" / "attack"
VARIANTS: dict[str, dict[str, Any]] = {
    "attention": {},
    "random_choice": {"choice": "random"},
    "random_content": {"steps": 0},
    "random_choice_and_content": {"choice": "random", "steps": 0},
    "published_surgery": {"surgery": "published"},
    "in_the_ball": {"eps": None},  # the dataset's eps
}
"""Variants of Patch-Fool: changes to conf/attack/patchfool.yaml, by name in parity.variants."""


@dataclass(frozen=True)
class Check:
    """One comparison, or one Patch-Fool run, on one member."""

    kind: str
    member: Member
    patches: int = 0
    variant: str = ""

    @property
    def name(self) -> str:
        """Its name on the display."""
        kind = f"{self.kind} ({self.variant}, {self.patches})" if self.patches else self.kind
        return f"{kind} on {self.member.name}"


def run(config: DictConfig) -> None:
    """The study, from a composed config."""
    require_foolbox()
    check_config(config)
    setting = build_setting(config)
    members = build_members(config)
    info = run_info(config, setting, len(members))
    console = terminal()
    with tracked(config, info) as tracker:
        with Bars(console) as bars:
            setting = prepare(config, setting, members, bars)
            with open_pipeline(config, setting, members, tracker, bars) as pipeline:
                members = pipeline.clean(members)
            with build_jobs(config, (setting, config), bars, PRELOAD) as jobs:
                fitting = vits(config, setting, members)
                todo = checks(config, members, fitting)
                ran = jobs.run("check", _check, todo, len(todo))
                done = {item.name: result.rows for item, result in ran}
                rows = [row for item in todo for row in done[item.name]]
            tables = {
                "parity": table_of(row for row in rows if "reference" in row),
                "patchfool": table_of(row for row in rows if "reference" not in row),
            }
            write_tables(tables, info.folder, tracker)
            pair = [m for m in members if m not in fitting][:1] + fitting[:1]
            tables["cost"] = cost_table(config, setting, pair, bars)
            write_tables({"cost": tables["cost"]}, info.folder, tracker)
        images, predictions = examples(config, setting, (fitting or members)[0])
        names = predictions["attack"].unique(maintain_order=True).to_list()
        figure = strips(images, names, predictions)
        tracker.figure("attacks", save(figure, info.folder / "attacks").paths[0])
        write(info.folder / "attacks.csv", predictions.write_csv, OutputsError, "folder")
    for table in terminal_tables(tables):
        console.print(table)
    names = ", ".join(f"{name}.csv" for name, table in tables.items() if table.height)
    console.print(f"Tables   {info.folder}/{names}")
    console.print(f"Figure   {info.folder}/attacks.png, .pdf")


def strips(images: Tensor, attacks: list[str], predictions: pl.DataFrame) -> Figure:
    """Images [A, I, 3, H, W] uint8 under A attacks, a column each, with their predictions; wrong
    ones are red. `predictions` has A * I rows, attack by attack."""
    shape = images.shape[:2]
    wrong = (predictions["prediction"] != predictions["label"]).to_numpy().reshape(shape).T
    below = predictions["prediction"].cast(pl.String).to_numpy().reshape(shape).T.tolist()
    pixels = images.permute(1, 0, 3, 4, 2).numpy()
    return images_figure([list(row) for row in pixels], attacks, below, wrong=wrong)


PRELOAD = ("netkin.attacks",)


def check_config(config: DictConfig) -> None:
    """Raises UserError for a value of the study's own keys that cannot be used."""
    parity = config.parity
    positive_int(parity.images, "parity.images")
    positive_int(parity.rounds, "parity.rounds")
    fraction(parity.autoattack_eps, "parity.autoattack_eps")
    whole_numbers(parity.patches, "parity.patches")
    lists(parity, "parity", "variants", "attacks", "changes")
    for variant in parity.variants:
        if variant not in VARIANTS:
            raise UserError(
                f"parity.variants knows {', '.join(VARIANTS)}, not {variant!r}"
                f"{near(str(variant), VARIANTS)}"
            )
    for name in (*parity.attacks, *COMPARISONS, "patchfool"):
        configured(config, name)


def write_tables(tables: dict[str, pl.DataFrame], folder: Path, tracker: Tracker) -> None:
    """Write the tables that have rows into the run's folder, and log them."""
    for name, table in tables.items():
        if table.height:
            write(folder / f"{name}.csv", table.write_csv)
            tracker.table(name, table)


def vits(config: DictConfig, setting: Setting, members: list[Member]) -> list[Member]:
    """The members that Patch-Fool fits."""
    attack: PatchFool = configured(config, "patchfool")
    return [m for m in members if attack.unfit(setting.build(m)) is None]


def checks(config: DictConfig, members: list[Member], fitting: list[Member]) -> list[Check]:
    """All checks, the longest first."""
    patchfool = [
        Check("patchfool", member, patches, variant)
        for variant in config.parity.variants
        for patches in config.parity.patches
        for member in fitting
    ]
    patchfool.sort(key=lambda check: "steps" in VARIANTS[check.variant])
    return patchfool + [Check(kind, member) for kind in COMPARISONS for member in members]


def configured(config: DictConfig, name: str, **changes: Any) -> Any:
    """The attack of conf/attack/<name>.yaml on this dataset, with some settings changed.

    Raises UserError for an unknown name, or a value that cannot be used.
    """
    path = CONFIGS / f"{name}.yaml"
    if not path.is_file():
        known = [file.stem for file in sorted(CONFIGS.glob("*.yaml"))]
        raise UserError(
            f"there is no attack {name!r} (attacks: {', '.join(known)}){near(name, known)}"
        )
    changed = OmegaConf.from_dotlist(list(config.parity.changes)).get(name) or {}
    own = OmegaConf.load(path)
    OmegaConf.set_struct(own, True)  # so that a key that it lacks is an error
    own = OmegaConf.merge(own, changed, changes)
    attack = OmegaConf.create({"dataset": config.dataset, "attack": own}).attack
    with naming_group("attack", attack):
        return instantiate(attack)


def batch_of(config: DictConfig, setting: Setting, member: Member) -> Batch:
    """The first parity.images images that a member classifies correctly."""
    return correct_batch(setting, member, config.parity.images, device(config))


# What workers run.


@dataclass(frozen=True, kw_only=True)
class Checked(Result):
    """The rows of a check."""

    rows: list[dict[str, Any]]


def _check(context: tuple[Setting, DictConfig], check: Check, advance: Advance) -> Checked:
    setting, config = context
    batch = batch_of(config, setting, check.member)
    with frozen(batch.classifier) as model:
        if check.kind == "patchfool":
            rows = [_patchfool(config, check, model, batch)]
        else:
            eps = fraction(config.parity.autoattack_eps, "parity.autoattack_eps")
            images = (model, batch.clean, batch.labels, batch.keys)
            rows = COMPARISONS[check.kind](partial(configured, config), images, eps)
    advance(1)
    named = [{"model": check.member.name, "images": len(batch.keys), **row} for row in rows]
    return Checked(rows=named)


def _patchfool(config: DictConfig, check: Check, model: nn.Module, batch: Batch) -> dict[str, Any]:
    changes = dict(VARIANTS[check.variant])
    if "eps" in changes:
        changes["eps"] = config.dataset.eps
    attack: PatchFool = configured(config, "patchfool", patches=check.patches, **changes)
    adversarial = attack.perturb(model, batch.pixels, batch.labels, batch.keys)
    stored = to_grid(adversarial, batch.clean, attack.eps)
    right = int((model(stored.float() / 255).argmax(dim=1) == batch.labels).sum())
    interval = binomtest(right, len(batch.labels)).proportion_ci(method="wilson")
    return {
        "variant": check.variant,
        "patches": check.patches,
        "accuracy": right / len(batch.labels),
        "low": interval.low,
        "high": interval.high,
    }


def cost_table(
    config: DictConfig, setting: Setting, members: list[Member], bars: Bars
) -> pl.DataFrame:
    """Images a second of each attack on a model prepared for crafting. Attacks are timed in turn,
    so that a busy machine slows them equally."""
    rounds, names = config.parity.rounds, list(config.parity.attacks)
    units = rounds * len(names) * len(members)
    torch.set_num_threads(config.hardware.threads)
    bars.start("cost", names, units)
    rows = []
    for member in members:
        batch = batch_of(config, setting, member)
        fast = execution.prepare(batch.classifier, setting.choice.execution, batch.pixels)
        seconds: dict[str, list[float]] = {}
        for _ in range(rounds):
            for name in names:
                attack: Attack = configured(config, name)
                if isinstance(attack, PatchFool) and attack.unfit(batch.classifier):
                    continue
                with frozen(fast) as model:
                    attacking = partial(_perturb, attack, model, batch, setting.batch_size)
                    seconds.setdefault(name, []).append(seconds_of(attacking, device(config)))
                bars.advance("cost", 1)
        for name, times in seconds.items():
            rows.append(
                {
                    "attack": name,
                    "model": member.name,
                    "images": len(batch.keys),
                    "images_per_second": len(batch.keys) / min(times),
                    "times_pgd": min(times) / min(seconds["pgd"]) if "pgd" in seconds else None,
                }
            )
    bars.end("cost")
    return table_of(rows)


def _perturb(attack: Attack, model: nn.Module, batch: Batch, size: int) -> None:
    for i in range(0, len(batch.keys), size):
        part = slice(i, i + size)
        attack.perturb(model, batch.pixels[part], batch.labels[part], batch.keys[part])


def examples(
    config: DictConfig, setting: Setting, member: Member, images: int = 3
) -> tuple[Tensor, pl.DataFrame]:
    """Some images under each attack, [A, I, 3, H, W] uint8, and the member's predictions."""
    batch = batch_of(config, setting, member)
    clean, labels, keys = batch.clean[:images], batch.labels[:images], batch.keys[:images]
    attacks: dict[str, Attack] = {"clean": Clean()}
    attacks |= {name: configured(config, name) for name in config.parity.attacks}
    strips, rows = [], []
    with frozen(batch.classifier) as model:
        for name, attack in attacks.items():
            if isinstance(attack, PatchFool) and attack.unfit(batch.classifier):
                continue
            adversarial = attack.perturb(model, clean.float() / 255, labels, keys)
            strips.append(to_grid(adversarial, clean, attack.eps))
            predictions = model(strips[-1].float() / 255).argmax(dim=1)
            rows += [
                {"attack": name, "image": key.split("\n")[1], "label": y, "prediction": p}
                for key, y, p in zip(keys, labels.tolist(), predictions.tolist(), strict=True)
            ]
    table = pl.DataFrame(rows).with_columns(pl.lit(member.name).alias("model"))
    return torch.stack(strips).cpu(), table


def table_of(rows: Iterable[dict[str, Any]]) -> pl.DataFrame:
    """Rows of different columns as one table; null where a row lacks a column."""
    return pl.DataFrame(list(rows), infer_schema_length=None)


def terminal_tables(tables: dict[str, pl.DataFrame]) -> list[Table]:
    """The tables for a terminal, with the columns that there is room for."""
    columns = {
        "parity": {
            "attack": "attack",
            "model": "model",
            "reference": "reference",
            "max_pixel_difference": "max. difference",
            "images_of_equal_bytes": "equal bytes",
            "robust_accuracy": "robust",
            "robust_accuracy_of_reference": "robust (reference)",
        },
        "patchfool": {
            "variant": "Patch-Fool",
            "model": "model",
            "patches": "patches",
            "accuracy": "accuracy",
            "low": "low",
            "high": "high",
        },
        "cost": {
            "attack": "attack",
            "model": "model",
            "images_per_second": "images/s",
            "times_pgd": "times PGD",
        },
    }
    printed = []
    for name, table in tables.items():
        if table.height:
            present = [column for column in columns[name] if column in table.columns]
            out = Table(*(columns[name][column] for column in present))
            for row in table.select(present).rows():
                out.add_row(*map(_cell, row))
            printed.append(out)
    return printed


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
