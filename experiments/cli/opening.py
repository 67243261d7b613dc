"""The first line of a command: what will be done, what the store has of it, and about how long.

It is printed before anything slow is imported or read, so it goes by names, and the attack's
numbers, in the config and in the store: what other weights or images of these names have made is
counted, too, until the run itself finds out.
"""

import glob
import json
from collections.abc import Sequence
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from experiments.cli.values import may_stop, swept
from netkin.report.text import duration
from netkin.store.names import folder, outcomes_folder
from netkin.store.rates import rates

ATTACKED = ("pairwise", "clusters", "importance", "within", "ensemble", "select", "teachers")
"""Experiments that attack all of model.members, where they are given no matrix."""

TOOLS = ("store", "index", "dashboard")


def opening(config: DictConfig, script: str) -> str:
    """The first line of a run of a script; of a job of a sweep, with what it differs in."""
    hydra = HydraConfig.get()
    start = str(config.experiment.name)
    if hydra.mode == RunMode.MULTIRUN:
        start = f"job {int(hydra.job.num) + 1} ({', '.join(swept())}): {start}"
    with suppress(Exception):  # mistakes are the run's to report
        return f"{start}: {_training(config) if script == 'train' else _measuring(config)}"
    return start


def _training(config: DictConfig) -> str:
    recipe, dataset = config.get("recipe"), config.dataset.name
    teacher, student = config.get("teacher"), config.get("student")
    what = "trains one model"
    if isinstance(student, str) and isinstance(teacher, str):
        what = f"trains {student} with the teacher {teacher}"
    elif len(names := _names(config)) == 1:
        what = f"trains {names[0]}"
    epochs = f" for {recipe.epochs} epochs" if recipe and "epochs" in recipe else ""
    return f"{what} on {dataset}{epochs}; store {config.store.dir}"


def _measuring(config: DictConfig) -> str:
    if config.get("similarity") is not None:
        option = HydraConfig.get().runtime.choices.get("similarity")
        return f"scores of {option or config.similarity.get('file')}"
    names, dataset, attack = _names(config), str(config.dataset.name), config.get("attack")
    option = HydraConfig.get().runtime.choices.get("attack")
    settings = [f"{key} {attack[key]}" for key in ("eps", "steps") if attack and key in attack]
    models = f"{len(names)} models" if names else "the models of the config"
    if config.experiment.name in TOOLS:
        return f"store {config.store.dir}"
    text = f"{models} on {dataset}, {' '.join([str(option), *settings])}; store {config.store.dir}"
    if not names or config.experiment.name not in ATTACKED:
        return text
    root = Path(str(config.store.dir)).expanduser()
    trained = _having(names, root, f"weights/{_folder(dataset)}/*.safetensors")
    subset = f"{_folder(dataset)}/{_folder(config.subset.get('name', ''))}-*"
    clean = _having(names, root, f"{subset}/clean/*/logits.safetensors")
    attacked: set[str] = set()
    for path in root.glob(f"{subset}/{_folder(option)}-*"):
        if attack and _same(path / "identity.json", attack):
            outcomes = path / outcomes_folder(str(config.transfer.precision))
            if any(outcomes.glob("*/*.parquet")):
                attacked |= _having(names, path, "adversarial/*/*.safetensors")
    if not clean:
        return f"{text} (which has none of them)"
    has = [f"clean predictions of {len(clean)}", f"attacks on {len(attacked)}"]
    if config.dataset.weights == "train":
        has.insert(0, f"weights of {len(trained)}")
    missing = [name for name in names if name not in attacked]
    images = _images(root, subset)
    text = f"{text}, with {', '.join(has)} of them"
    text += f"; {images} images" if images else ""
    steps = int(attack.get("steps", 1)) if attack else 1
    known = missing and images and not may_stop(config)
    left = _seconds(rates(root), names, missing, images, steps) if known else None
    text += f"; about {duration(left)} of work left" if left else ""
    return text


def _folder(name: Any) -> str:
    """A name's folder as a part of a pattern: a name may have [ and ], which are none of it."""
    return glob.escape(folder(str(name)))


def _same(file: Path, attack: DictConfig) -> bool:
    """Whether an attack's folder in the store is of an attack with these numbers."""
    with suppress(OSError, ValueError, KeyError):
        stored = json.loads(file.read_text())["attack"]
        return all(
            abs(float(Fraction(str(value))) - stored[key]) < 1e-9
            for key, value in attack.items()
            if isinstance(stored.get(key), int | float) and not isinstance(stored[key], bool)
        )
    return False


def _names(config: DictConfig) -> list[str]:
    """The members' names, as far as the config tells."""
    members: Any = OmegaConf.to_container(config.model, resolve=True)["members"]  # type: ignore[index]
    if not isinstance(members, list):
        return []
    return [m if isinstance(m, str) else str(m.get("name", m.get("timm"))) for m in members]


def _having(names: Sequence[str], root: Path, pattern: str) -> set[str]:
    """The models that have a file in the store, by the name of the file or of its folder."""
    found = set()
    for path in root.glob(pattern):
        found |= {path.stem, path.parent.name}
    return {name for name in names if folder(name) in found}


def _images(root: Path, subset: str) -> int:
    """The number of images of the one subset of that name; 0 where there are several, or none."""
    files = list(root.glob(f"{subset}/manifest.json"))
    with suppress(OSError, ValueError, KeyError):
        return len(json.loads(files[0].read_text())["ids"]) if len(files) == 1 else 0
    return 0


def _seconds(
    known: dict[str, dict[str, float]],
    names: Sequence[str],
    missing: Sequence[str],
    images: int,
    steps: int,
) -> float | None:
    """Seconds of one process for the attacks that are missing; None where a rate is unknown."""
    craft, transfer = known.get("craft", {}), known.get("transfer", {})
    if any(name not in craft for name in missing) or any(name not in transfer for name in names):
        return None
    made = sum(craft[name] for name in missing) * images * steps
    return made + sum(transfer[name] for name in names) * images * len(missing)
