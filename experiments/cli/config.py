"""The settings of evaluate.py and train.py: their types, defaults and meaning.

The comment beside a setting is what --help says of it. OmegaConf refuses values of another type,
`check` those out of range, and settings that the chosen experiment does not read. Groups of options
(attack, dataset, recipe, ...) are in conf/ and are checked by the classes that they are passed to.
"""

import inspect
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from omegaconf import MISSING, DictConfig, ListConfig, OmegaConf

from netkin.errors import UserError, near

CONF = Path(__file__).parents[2] / "conf"
GROUPS = ("experiment", "dataset", "subset", "model", "recipe", "attack", "logger", "distillation")
"""Keys whose options are the files of a folder of conf/."""
PRECISIONS = ("32-true", "tf32", "bf16-mixed", "16-mixed")
CHOICES: dict[str, tuple[Any, ...]] = {
    "store.dtype": ("uint8", "float32"),
    "transfer.interpolation": ("bilinear", "bicubic"),
    "transfer.precision": PRECISIONS[:3],
    "hardware.accelerator": ("auto", "cpu", "gpu"),
    "hardware.train_precision": ("32-true", "bf16-mixed", "16-mixed"),
    "hardware.craft_precision": PRECISIONS,
    "hardware.memory_format": ("contiguous", "channels_last", "auto"),
    "on_suspect": ("warn", "stop"),
    "dataset.weights": ("train", "pretrained"),
    "dataset.on_error": ("stop", "skip"),
    "distillation.token": (True, False),
    "subset.shuffled": (True, False, None),
}
LEAST = {
    "ensemble.sizes": 2,
    "hardware.loader_processes": 0,
    "importance.min_samples": 2,
    "importance.splits": 2,
    "run": 0,
    "select.tolerance": 0,
    "teachers.above": -5,
}
"""Of other numbers: 0 of seeds, 1 of whole numbers, more than 0 of the rest."""
SHARES = ("distillation.level", "importance.held_out", "level")
"""Settings between 0 and 1."""
EXPERIMENTS: dict[str, tuple[type, str]] = {}
"""The class of an experiment's settings, and the section that those of the class itself are in."""


def items(*values: Any) -> Any:
    return field(default_factory=lambda: list(values))


def experiment(*names: str, section: str = "") -> Callable[[type], type]:
    """A class of the settings of one or more experiments.

    Settings of its base classes are at the config's top level, its own in the section, if any.
    """

    def add(class_: type) -> type:
        EXPERIMENTS.update(dict.fromkeys(names, (dataclass(class_), section)))
        return class_

    return add


@dataclass
class _TrainStore:
    dir: str = "store"  # shared by all runs; what it holds is not computed again


@dataclass
class Store(_TrainStore):
    """Of evaluate.py."""

    dtype: str = "uint8"  # of stored adversarial images: on the 8-bit grid, or not
    shard_size: int = 100  # images in a unit of work


@dataclass
class Transfer:
    """How targets see adversarial images."""

    interpolation: str = "bilinear"  # for a target of another input size, antialiased
    precision: str = "32-true"  # of targets on adversarial images alone; tf32 on a GPU


@dataclass
class Score:
    """How scores are computed."""

    eps_s: float = 0.01  # floor of 100 p in s = ln max(eps_s, 100 p)
    bootstrap: int = 1000  # samples of the images for intervals of means and correlations
    half_width: float | None = None  # nats: stop once intervals (high - low) are twice this
    share: float = 0.95  # of the pairs whose intervals must be


@dataclass
class Figure:
    """Of all figures of a run."""

    width: float | None = None  # inches, such as 3.25 or 6.75; null leaves each its own
    formats: list[str] = field(default_factory=lambda: ["png", "pdf"])  # and svg


@dataclass
class Hardware:
    """The devices, precision and memory of a run."""

    accelerator: str = "auto"
    devices: int | str = 1  # GPUs (with accelerator=cpu: processes) that share each model's work
    members_at_once: int | str = "auto"  # evaluate.py; auto: one a CPU core, or 1 on a GPU
    threads: int | str = "auto"  # torch threads a process; auto: the cores over the models at work
    batch_size: int | str = 100  # images through a model at once; auto is 100
    train_precision: str = "32-true"
    train_compile: bool = False  # compile the model that is trained (torch.compile)
    craft_precision: str = "32-true"  # of sources; tf32 and 16-mixed on a GPU
    craft_compile: bool = False  # torch.compile: takes a minute a model, some get slower
    memory_format: str = "channels_last"  # auto is channels_last
    fuse: bool = True  # run models with batch normalisation folded into convolutions, and the like
    loader_processes: int | str = "auto"  # a device; auto: 0 on a CPU; 2 on a GPU, or the cores
    # less 1 in train.py
    prefetch: int = 2  # shards that each process keeps ready
    pin_memory: bool | str = "auto"  # auto: on a GPU
    decode_threads: int | str = "auto"  # image files at once; auto: 1 on a CPU, all cores on a GPU


@dataclass
class Base:
    """What both commands have."""

    quiet: bool = False  # print the answer alone, without progress
    figure: Figure = field(default_factory=Figure)
    hardware: Hardware = field(default_factory=Hardware)


@dataclass
class Evaluate(Base):
    """What evaluate.py has for every experiment."""

    store: Store = field(default_factory=Store)
    transfer: Transfer = field(default_factory=Transfer)
    score: Score = field(default_factory=Score)
    on_suspect: str = "warn"  # a member whose clean predictions look wrong (docs/data.md)


@dataclass
class Train(Base):
    """What train.py has for every experiment."""

    store: _TrainStore = field(default_factory=_TrainStore)
    seed: int = 0  # of the initialisation, the order of images, their augmentation, dropout
    name: str | None = None  # of the weights; default: from the model, its teacher and its seed
    resume: str = "auto"  # an unfinished training (never starts anew), or a checkpoint
    fast_dev_run: bool = False  # one batch, in a separate store: does everything fit together?


@dataclass
class _OfMatrix:
    similarity: Any = None  # sat69 (the published 69) or a CSV file of scores, instead of measuring
    symmetrise: bool = False  # use the mean of s(A, B) and s(B, A) where a file has both


@dataclass
class _WithComponents(_OfMatrix):
    components: str | None = None  # a CSV file, a column per component; null asks the models


@dataclass
class _OfClusters(_WithComponents):
    k: int | str | None = None  # clusters; auto: the eigengap; null: the paper's 10, at most N / 3


@dataclass
class _OfGroups(_OfMatrix):
    groups: Any = None  # {name: [members or patterns]}; null takes the families


@dataclass
class _OfStudent(_OfMatrix):
    student: Any = "${dataset.student}"


@dataclass
class _TwoMatrices(_OfMatrix):
    a: str = MISSING  # a run's folder, a CSV file of scores, or sat69 (the published 69)
    b: str = MISSING  # the same


@dataclass
class _OfLandmarks:
    landmarks: Any = "auto"  # a number to draw, names, or auto (20, half of fewer than 40)
    seed: int = 0  # of the draw of landmarks, and of the regression


@dataclass
class _OfPack(_OfLandmarks):
    predictions: str | None = None  # a CSV file "image_id,prediction" of the images of the pack


@experiment("attacks")
class _Attacks:
    attacks: list[Any] = items("pgd", {"attack": "pgd", "steps": 10})  # options of the attack
    # group, or {attack: option, setting: value, ...}; the others are compared with the first
    one_sided: bool = False  # compare with scores of one direction
    sources: Any = None  # members that the other attacks are crafted on, if not all (one direction)
    permutations: int = 9999  # of the models, for the Mantel test


@experiment("budget", section="budget")
class _Budget:
    steps: list[int] = items(5, 10, 20)  # fewer than the attack's own, each 2.5 eps / steps long
    least_r: float = 0.95  # of a matrix that counts as the same: r with the reference,
    most_bias: float = 0.1  # the mean difference of scores,
    least_inside: float = 0.9  # and the share of pairs inside the reference's interval


@experiment("classes", section="classes")
class _Classes:
    pairs: int = 10  # in the answer's tables


@experiment("clusters", section="clusters")
class _Clusters(_OfClusters):
    restarts: int = 1000  # runs of K-means, of which the best counts
    seed: int = 0  # of K-means and of the map
    keywords: int = 5  # per cluster
    seeds: int = 5  # clusterings with other seeds of K-means, for the stability
    draws: int = 200  # clusterings of draws of images, for the stability
    images: int | None = None  # that a file's scores are of: simulates draws of them
    perplexity: int = 10  # of the t-SNE map, at most (N - 1) / 3


@experiment("compare", section="compare")
class _Compare(_TwoMatrices):
    pairs: int = 10  # pairs that differ most, in the answer's table
    permutations: int = 9999  # of the models, for the Mantel test


@experiment("components")
class _Components:
    components: str | None = None  # a CSV file to compare with, a column per component


@experiment("craft")
class _Craft:
    source: Any = items()  # members' names, [] for all; in a sweep: a,b,c or glob(vit_*)


@experiment("dashboard")
class _Dashboard:
    entity: str | None = None  # your account or team at W&B
    project: str | None = None  # in W&B; the logger's, or netkin


@experiment("distill")
class _Distill:
    teacher: Any = None  # a timm name, one of the zoo, or a trained model (digits/vit_s@seed1)
    student: Any = "${dataset.student}"


@experiment("distillation", section="distillation")
class _Distillation(_OfStudent):
    permutations: int = 9999  # of the teachers, for the p-value
    level: float = 0.9  # confidence of the trend's band


@experiment("ensemble", section="ensemble")
class _Ensemble(_OfGroups):
    sizes: list[int] = items(2, 3, 4, 5)  # N
    clusters: int | str | None = None  # that ensembles are drawn from, as k of experiment=clusters
    samples: int = 200  # ensembles of N models from k clusters; all, where there are fewer
    seed: int = 0  # of the draws and of the clusters
    permutations: int = 9999  # of the models, for the Mantel test


@experiment("eps", section="eps")
class _Eps:
    values: list[Any] = items("2/255", "4/255", "8/255", "16/255", "32/255", "48/255")
    images: int = 100  # of the subset, evenly spaced: at most so many


@experiment("seeds", "hparams")
class _Sweep:
    run: int = MISSING  # the number of one of sweep.runs


@experiment("importance", section="importance")
class _Importance(_WithComponents):
    stages: int = 500  # of gradient boosting; this and the next three as in the paper (Appendix B)
    depth: int = 12
    min_samples: int = 4  # fewest pairs of a node that is split
    learning_rate: float = 0.02
    repeats: int = 10  # shuffles of a component
    splits: int = 20  # of the models into fitted and held-out ones
    held_out: float = 0.25  # share of the models, at least 4
    permutations: int = 9999  # of the models, for the Mantel test of each component
    seed: int = 0


@experiment("index")
class _Index:
    runs: str = "outputs"  # the folder of the runs


@experiment("landmarks")
class _Landmarks(_OfLandmarks, _OfMatrix):
    one_sided: bool = False  # attack the landmarks alone: scores of one direction
    level: float = 0.9  # of the intervals of predicted scores


@experiment("measures", section="measures")
class _Measures:
    images: int = 500  # at most, of the subset, for all measures
    bootstrap: int = 100  # draws of images, for the stability
    seed: int = 0  # of the images
    permutations: int = 9999  # of the models, for the Mantel test


@experiment("novel", section="novel")
class _Novel:
    clusters: int | str | None = None  # of the members, as k of experiment=clusters


@experiment("plan", section="plan")
class _Plan:
    seconds: float = 1  # that a timed batch may take: it grows until then, up to
    # hardware.batch_size
    devices: list[int] = items(1, 4, 8)  # numbers of such devices for which times are computed


@experiment("probe", section="probe")
class _Probe(_OfPack):
    export: str | None = None  # a new folder for the pack
    name: str = "probe"  # of the classifier
    clusters: int | str | None = None  # of the members, as k of experiment=clusters


@experiment("relatives", section="relatives")
class _Relatives(_OfClusters):
    model: Any = MISSING  # of the matrix, or any timm name; model=NAME for short
    number: int = 5  # nearest and farthest ones that are named


@experiment("select", section="select")
class _Select(_WithComponents):
    size: int = 3  # models in an ensemble
    include: list[str] = items()  # models that each ensemble contains
    max_params: float | None = None  # most parameters of an ensemble in all, such as 50e6
    accuracies: str | None = None  # for a file without logits: a CSV file of "model,accuracy"
    tolerance: float = 0.003  # without logits: so near errors do not count (docs/published.md)
    top: int = 10  # ensembles that are listed
    samples: int = 500  # ensembles that the prediction is fitted on; all, where there are fewer
    student: Any = None  # rank all other models as its teachers
    seed: int = 0


@experiment("store")
class _Store:
    check: bool = False  # read every file and verify its checksum
    remove: Any = items()  # damaged | leftovers | members' names | paths in the table
    confirm: bool = False  # false: only list what would be removed


@experiment("teachers", section="teachers")
class _Teachers(_OfStudent):
    number: int = 25
    above: float = 2.5  # candidates with a higher similarity to the student are all chosen
    exclude: list[str] = items("ViT", "vision_transformer", "deit")  # families
    seed: int = 0  # of the sample


@experiment("within", section="within")
class _Within(_OfGroups):
    matrices: Any = None  # further groups, each with its own matrix: {name: similarity.csv}


COMMANDS: dict[str, type] = {"evaluate": Evaluate, "train": Train}


@dataclass(frozen=True)
class Setting:
    """A setting: its dotted key, type, default, and what its comment says."""

    key: str
    type: Any
    default: Any
    about: str

    @property
    def kinds(self) -> set[Any]:
        """Its type, and those of an alternative or of a list's items."""
        return {self.type, *get_args(self.type)}

    @property
    def least(self) -> int | None:
        """The least number that it may be; None where it must be above 0."""
        whole = int in self.kinds and not self.key.endswith("seed")
        return LEAST.get(self.key, 1 if whole else 0 if self.key.endswith("seed") else None)

    @property
    def expected(self) -> str:
        """What its value must be, in words."""
        kinds, what = self.kinds, "text"
        if choices := CHOICES.get(self.key):
            return " or ".join(map(str, choices))
        if self.key in SHARES:
            what = "between 0 and 1"
        elif bool in kinds:
            what = "true or false"
        elif {int, float} & kinds:
            number = "a whole number" if int in kinds else "a number"
            what = (
                f"{number} above 0" if self.least is None else f"{number} of {self.least} or more"
            )
        if get_origin(self.type) is list:
            what = f"a list, each {what}"
        elif str in kinds and what != "text":
            what = f"auto or {what}"
        return f"{what}, or null" if NoneType in kinds else what

    def allows(self, value: Any) -> bool:
        """Whether a value of its type is in its range."""
        if isinstance(value, list | ListConfig):
            return all(map(self.allows, value))
        if choices := CHOICES.get(self.key):
            return value in choices
        if isinstance(value, str):
            return not {bool, int} & self.kinds or value == "auto"
        if value is None:
            return bool({NoneType, Any} & self.kinds)
        if not {int, float} & self.kinds:
            return self.type is not str
        if isinstance(value, bool) or (self.key in SHARES and value >= 1):
            return False
        return value > 0 if self.least is None else value >= self.least


@cache
def settings(name: str, script: str) -> dict[str, Setting]:
    """The settings of an experiment and its command by dotted key, the experiment's own first."""
    parts = [EXPERIMENTS[name]] if name in EXPERIMENTS else []
    found = {}
    for class_, section in (*parts, (COMMANDS[script], "")):
        for each in _settings(class_, section):
            found[each.key] = each
    return found


def _settings(class_: type, section: str, path: str = "") -> Iterator[Setting]:
    types, own = get_type_hints(class_), inspect.get_annotations(class_)
    comments = {}
    for parent in reversed(class_.__mro__[:-1]):
        comments |= _comments(parent)
    for each in fields(class_):
        key = f"{section}.{each.name}" if section and each.name in own else path + each.name
        made = each.default_factory
        if isinstance(made, type):
            yield from _settings(made, "", f"{key}.")
        else:
            default = made() if callable(made) else each.default
            yield Setting(key, types[each.name], default, comments.get(each.name, ""))


@cache
def _comments(class_: type) -> dict[str, str]:
    """The comments beside the fields of a class, by field.

    `inspect.getsource` of a class parses its whole module.
    """
    module = inspect.getsource(sys.modules[class_.__module__])
    found = re.search(rf"(?ms)^class {class_.__name__}\b.*?(?=^[^\s)]|\Z)", module)
    beside = re.findall(r"(?m)^    (\w+): .*?  # (.*(?:\n    # .*)*)", found[0] if found else "")
    return {name: re.sub(r"\n    #", "", text) for name, text in beside}


def register() -> None:
    """Make the classes known to Hydra, for the defaults lists of conf/evaluate.yaml and train.yaml.

    Their settings are typed; the root of a config is open for those that files in conf/ add.
    """
    store = ConfigStore.instance().store
    for script, class_ in COMMANDS.items():
        typed = OmegaConf.structured(class_)
        store(script, {key: typed._get_node(key) for key in typed}, "base", "_global_")
    for name, (class_, section) in EXPERIMENTS.items():
        typed, own = OmegaConf.structured(class_), inspect.get_annotations(class_)
        nodes: dict[str, Any] = {}
        for key in typed:
            inside = nodes.setdefault(section, {}) if section and key in own else nodes
            inside[key] = typed._get_node(key)
        store(name, nodes, "keys", "_global_")


register()


def composed(script: str, given: Sequence[str]) -> DictConfig:
    """The config of a script with arguments that are no sweeps. Raises what Hydra does."""
    GlobalHydra.instance().clear()
    parsed = get_args_parser().parse_args(list(given))
    own = Path(parsed.config_dir).absolute() if parsed.config_dir else None
    more = [f"hydra.searchpath=[file://{own}]"] if own else []
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(script, overrides=[*parsed.overrides, *more])


def check(config: DictConfig, script: str) -> None:
    """Raises UserError for a value out of its range, and for a matrix that nothing would read."""
    name, dataset = config.experiment.name, config.get("dataset", {})
    known = settings(name, script)
    of_groups: dict[str, Any] = dict.fromkeys(CHOICES.keys() - known.keys(), Any)
    size = int if dataset.get("weights") == "train" else int | None
    of_groups |= {"dataset.name": str, "dataset.input_size": size}
    checked = known | {key: Setting(key, type_, None, "") for key, type_ in of_groups.items()}
    for key, setting in checked.items():
        group, _, leaf = key.rpartition(".")
        node = OmegaConf.select(config, group) if group else config
        if key in known and not isinstance(node, DictConfig):
            raise UserError(f"{group}={node}: {group} holds settings, such as {key}=VALUE")
        if node is None or leaf not in node or OmegaConf.is_missing(node, leaf):
            continue
        if not setting.allows(value := node.get(leaf)):
            hint = near(value, map(str, CHOICES.get(key, ()))) if isinstance(value, str) else ""
            raise UserError(f"{key} must be {setting.expected}, got {value!r}{hint}")


ATTACKED = ("attack", "transfer", "recipe")
WITH_LOGITS = ("ensemble", "select")  # of models in the store, beside scores from a file
UNREAD: dict[str, tuple[str, ...]] = {
    "compare": ("dataset", "subset", "model", "score", *ATTACKED),
    "components": ("subset", "score", *ATTACKED),
    "dashboard": ("dataset", "subset", "model", "score", *ATTACKED),
    "distill": ("model.members", "recipes.resnet", "recipes.vit"),
    "hparams": ("model.members", "distillation", "seed", "recipes.teacher"),
    "index": ("dataset", "subset", "model", "score", *ATTACKED),
    "scratch": ("distillation", "recipes"),
    "seeds": ("model.members", "distillation", "seed", "recipes.teacher"),
    "store": ("dataset", "subset", "model", "score", *ATTACKED),
}
"""Keys that an experiment does not read, with all in them; others it reads, or may read."""


def check_read(config: DictConfig, script: str, typed: Sequence[str]) -> None:
    """Raises UserError for a setting that was typed and that this run would not read.

    Experiments that are not in conf/experiment may read what they like.
    """
    name = config.experiment.name
    if not (CONF / "experiment" / f"{name}.yaml").is_file():
        return
    unread = dict.fromkeys(UNREAD.get(name, ()), "")
    if "similarity" not in settings(name, script):
        having = [other for other in EXPERIMENTS if "similarity" in settings(other, script)]
        unread["similarity"] = f"; these do: {', '.join(having)}"
    elif config.get("similarity") is not None:
        attacked = [key for key in ATTACKED if key != "recipe" or name not in WITH_LOGITS]
        unread |= dict.fromkeys(attacked, ", since its scores are read from a file")
    if script == "evaluate" and config.dataset.get("weights") == "pretrained":
        unread.setdefault("recipe", ", since weights are published ones (dataset.weights)")
    for text in typed:
        key = text.lstrip("+~").partition("=")[0].partition("@")[0]
        for parent, why in unread.items():
            if f"{key}.".startswith(f"{parent}."):
                raise UserError(f"experiment={name} does not read {parent} ({text}){why}")
