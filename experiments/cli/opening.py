"""The first line of a command: what will be done, what the store has of it, and about how long.

It is printed before anything slow is imported or read, so it goes by names and the attack's
numbers: results of other weights or images of these names are counted, too.
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
from netkin.store import folder, rates

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
    teacher, student, names = config.get("teacher"), config.get("student"), _names(config)
    what = names[0] if len(names) == 1 else "one model"
    if isinstance(student, str) and isinstance(teacher, str):
        what = f"{student} with the teacher {teacher}"
    epochs = f" for {config.recipe.epochs} epochs" if config.get("recipe") else ""
    return f"trains {what} on {config.dataset.name}{epochs}; store {config.store.dir}"


def _measuring(config: DictConfig) -> str:
    choices, root = HydraConfig.get().runtime.choices, Path(str(config.store.dir)).expanduser()
    if config.get("similarity") is not None:
        return f"scores of {config.similarity.get('file') or choices['similarity']}"
    if config.experiment.name in TOOLS:
        return f"store {config.store.dir}"
    names, attack, dataset = _names(config), config.attack, str(config.dataset.name)
    settings = [f"{key} {attack[key]}" for key in ("eps", "steps") if key in attack]
    models = f"{len(names)} models" if names else "the models of the config"
    option = str(choices["attack"])
    text = f"{models} on {dataset}, {' '.join([option, *settings])}; store {config.store.dir}"
    if not names or config.experiment.name not in ATTACKED:
        return text
    subset = f"{_pattern(dataset)}/{_pattern(config.subset.get('name', ''))}-*"
    clean = _having(names, root, f"{subset}/clean/*/logits.safetensors")
    if not clean:
        return f"{text} (which has none of them)"
    attacked: set[str] = set()
    for path in root.glob(f"{subset}/{_pattern(option)}-*"):
        if _same(path / "identity.json", attack):
            attacked |= _having(names, path, "adversarial/*/*.safetensors")
    has = [f"clean predictions of {len(clean)}", f"attacks on {len(attacked)}"]
    if config.dataset.weights == "train":
        trained = _having(names, root, f"weights/{_pattern(dataset)}/*.safetensors")
        has.insert(0, f"weights of {len(trained)}")
    text += f", with {', '.join(has)} of them"
    manifests = list(root.glob(f"{subset}/manifest.json"))
    if len(manifests) != 1:
        return text
    images = len(json.loads(manifests[0].read_text())["ids"])
    missing = [name for name in names if name not in attacked]
    left = 0.0 if may_stop(config) else _seconds(root, names, missing, attack.get("steps", 1))
    return f"{text}; {images} images" + (f"; about {duration(left * images)} left" if left else "")


def _pattern(name: Any) -> str:
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
    found = {name for path in root.glob(pattern) for name in (path.stem, path.parent.name)}
    return {name for name in names if folder(name) in found}


def _seconds(root: Path, names: Sequence[str], missing: Sequence[str], steps: int) -> float:
    """Seconds of one process, an image, for the missing attacks; 0 where a rate is unknown."""
    known = rates(root)
    craft, transfer = known.get("craft", {}), known.get("transfer", {})
    if any(name not in craft for name in missing) or any(name not in transfer for name in names):
        return 0.0
    made = sum(craft[name] for name in missing) * int(steps)
    return made + sum(transfer[name] for name in names) * len(missing)
