"""netkin from Python: `compare` runs what `evaluate.py` runs, on modules and images in memory."""

import json
import os
import random
import signal
import tempfile
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import nn

from netkin import run
from netkin.analysis.groups import Draws
from netkin.analysis.suspect import CHANCE, REMEDIES, Suspicion, cautions
from netkin.attacks import PGD, Attack, as_attack
from netkin.attacks.grid import levels
from netkin.attacks.units import fraction, whole_number
from netkin.comparison import Result, summarise
from netkin.data import arrays, subset
from netkin.data.arrays import Arrays
from netkin.errors import Stopped, UserError
from netkin.evaluation import Evaluation
from netkin.jobs.pool import Processes, keep_freed, release_freed
from netkin.run import COMPARISON, Incomplete, Settings
from netkin.runner import Runner
from netkin.similarity import EPS_S
from netkin.store.layout import Store
from netkin.zoo.given import Model, num_classes, read_models
from netkin.zoo.member import Member, Task


def compare(
    models: Mapping[str, nn.Module | Model | str | Mapping[str, Any]],
    images: Any,
    labels: Any = None,
    *,
    eps: float | str | None = None,
    step_size: float | str | None = None,
    steps: int | None = None,
    seed: int | None = None,
    attack: Any = None,
    batch_size: int = 100,
    device: str | torch.device = "auto",
    progress: bool = False,
    store: str | Path | None = None,
    bootstrap: int = 1000,
    eps_s: float = EPS_S,
    classes: Sequence[str] | None = None,
    ids: Sequence[str] | None = None,
) -> Result:
    """How related models are, by transfer of adversarial images (see `netkin.similarity`).

    Nothing is printed, and no global state is changed: not the models, nor torch's random numbers.

    Args:
        models: two or more, by name: an nn.Module of pixels in [0, 1], a `Model`, or what a config
            lists (docs/models.md): a timm name with its published weights, a mapping, ...
        images: [N, 3, H, W] ([N, 1, H, W] of gray ones) in [0, 1], which is rounded to 8 bits, or
            uint8; or, without labels, batches (images, labels), such as a DataLoader.
        labels: [N] class indices in [0, K).
        eps, step_size: PGD's, in pixels of [0, 1]; 8/255 and eps / 4 unless given.
        steps, seed: PGD's; 50 and 0 unless given. A random start depends on the seed, the model's
            name and the image's id.
        attack: any object with `perturb` (see `netkin.attacks`), in the place of PGD.
        batch_size: images through a model at once; halved where memory runs out.
        device: "auto" (a GPU where there is one), "cpu" or "cuda".
        progress: whether to show progress on stderr.
        store: a folder that keeps what is computed, to go on from; a temporary one unless given.
        bootstrap: samples of the images, at most, for intervals of means over pairs.
        eps_s: the floor of 100 p in s = ln max(eps_s, 100 p).
        classes: names of the K classes.
        ids: a text an image; its number unless given.

    A model that classifies no image correctly that some other one does is left out: its pairs have
    no score, and `Result.failures` has the reason.

    Raises UserError (a ValueError) that names the argument, or the model that fails.
    """
    _check(models, batch_size, bootstrap, eps_s)
    with (
        unchanged(),
        _in_eval_mode(models.values()),
        tempfile.TemporaryDirectory(prefix="netkin-") as temporary,
    ):
        attack = _attack(attack, eps, step_size, steps, seed, store is not None)
        if attack.eps is not None:
            levels(attack.eps)  # raises where it is too small for images of 8 bits
        data = arrays.read(images, labels, ids)
        # Modules can be built for as long as they are held.
        members, held = read_models(models, data.pixels.shape[1:])
        width = num_classes(members, held, classes)
        data = data.with_classes(list(map(str, range(width) if classes is None else classes)))
        folder = Store(temporary if store is None else store)
        runner = Runner(_accelerator(device), batch_size)
        settings = _settings(data, members, attack, folder, runner, progress)
        return _result(settings, bootstrap, eps_s)


def _settings(
    data: Arrays,
    members: Sequence[Member],
    attack: Attack,
    store: Store,
    runner: Runner,
    progress: bool,
) -> Settings:
    task = Task("images", len(data.classes), "pretrained", classes=tuple(data.classes))
    return Settings(
        Evaluation(data, subset.draw(data, "full"), task, attack),
        members,
        store,
        runner,
        Processes(threads=torch.get_num_threads()),
        console=Console(stderr=True, quiet=not progress),
        check_members=False,
    )


def _result(settings: Settings, draws: int, eps_s: float) -> Result:
    suspects, failed = dict[str, Sequence[Suspicion]](), None
    with run.open(replace(settings, watch=suspects.update)) as r:
        try:
            outcomes = r.measure()
        except Incomplete as error:
            if error.outcomes is None or any(f.stage != COMPARISON for f in error.failures):
                named = [f"{f.model.name} failed in {f.stage}: {f.reason}" for f in error.failures]
                text = " ".join([f"{'; '.join(named)}.", *_cautions(suspects)])
                raise UserError(text) from error.failures[0].error
            outcomes, failed = error.outcomes, error.table
        except UserError as error:  # such as no image that two of them classify correctly
            if not suspects:
                raise
            raise UserError(f"{error}. {' '.join(_cautions(suspects))}") from error
    reasons = {name: "; ".join(s.finding for s in found) for name, found in suspects.items()}
    drawn = Draws(outcomes, draws)
    done = [model for model in r.models if model.name in outcomes.members]
    result = summarise(r.results, done, outcomes, drawn, eps_s, r.models, failed, reasons)
    result.answer.extend(_cautions(suspects))
    evaluation = r.evaluation
    values = {
        "models": {model.name: model.identity for model in r.models},
        "images": {"number": len(evaluation.subset), "sha256": evaluation.subset.digest},
        "attack": {"name": evaluation.attack.name, **evaluation.attack.identity},
        "score": {"eps_s": eps_s, "bootstrap": draws},
        "batch_size": r.runner.batch_size,
        "device": r.runner.accelerator,
    }
    # JSON, so that tuples and numbers are written as plain ones
    return replace(result, settings=json.loads(json.dumps(values)))


def _cautions(suspects: Mapping[str, Sequence[Suspicion]]) -> list[str]:
    """What looks wrong with models, and what to do."""
    return cautions(suspects, lambda found: ADVICE.get(found.kind, PREPROCESSING))


def _check(models: Any, batch_size: Any, bootstrap: Any, eps_s: Any) -> None:
    if not isinstance(models, Mapping) or not all(isinstance(n, str) and n for n in models):
        raise UserError(
            'models must be a mapping of names to networks, such as {"a": net_a, "b": net_b}, got '
            f"{'other names' if isinstance(models, Mapping) else f'a {type(models).__name__}'}"
        )
    if len(models) < 2:
        raise UserError(f"models must be two or more, got {len(models)}")
    whole_number(batch_size, "batch_size")
    whole_number(bootstrap, "bootstrap")
    if isinstance(eps_s, bool) or not isinstance(eps_s, int | float) or not eps_s > 0:
        raise UserError(f"eps_s must be a number above 0, got {eps_s!r}")


def _accelerator(device: str | torch.device) -> str:
    text, gpu = str(device), torch.cuda.is_available()
    if text == "auto":
        return "gpu" if gpu else "cpu"
    if text not in ("cpu", "gpu", "cuda", "cuda:0"):
        raise UserError(
            f"device must be auto, cpu or cuda, got {text!r}; CUDA_VISIBLE_DEVICES chooses a GPU"
        )
    if text != "cpu" and not gpu:
        raise UserError(f"device={text}, but torch finds no GPU; use device='cpu'")
    return "cpu" if text == "cpu" else "gpu"


def _attack(attack: Any, eps: Any, step_size: Any, steps: Any, seed: Any, stored: bool) -> Attack:
    """The attack, with the identity that the command gives to PGD.

    Args:
        attack, eps, step_size, steps, seed: of `compare`.
        stored: whether its results are kept, so that it must be told from others.
    """
    given = {"eps": eps, "step_size": step_size, "steps": steps, "seed": seed}
    if attack is None:
        radius = fraction(8 / 255 if eps is None else eps, "eps")
        values = {
            "eps": radius,
            "step_size": radius / 4 if step_size is None else fraction(step_size, "step_size"),
            "steps": whole_number(50 if steps is None else steps, "steps"),
            "random_start": True,
            "seed": whole_number(0 if seed is None else seed, "seed", 0),
        }
        return as_attack(PGD(**values), "pgd", {"_target_": "netkin.attacks.PGD", **values})
    both = [key for key, value in given.items() if value is not None]
    if both:
        raise UserError(f"{both[0]} is of PGD; give it to the attack that `attack` is")
    kind, values, attributes = type(attack), dict[str, Any](), getattr(attack, "__dict__", {})
    for key, value in attributes.items():
        with suppress(TypeError, ValueError):
            values[key] = json.loads(json.dumps(value))
    if stored and (opaque := sorted(attributes.keys() - values.keys())):
        raise UserError(
            f"attack has attributes that a store cannot tell from others ({', '.join(opaque)}); "
            "leave store out, or keep numbers and texts only"
        )
    identity = {"_target_": f"{kind.__module__}.{kind.__qualname__}", **values}
    return as_attack(attack, kind.__name__.lower(), identity)


PREPROCESSING = (
    "Check that the labels are in its order of classes, and give netkin.Model the mean, std and "
    "input_size that it was trained with"
)
ADVICE = {**REMEDIES, CHANCE: PREPROCESSING}
"""What to do about kinds of suspicions, by the names of this module's arguments."""
_one_at_a_time = threading.RLock()


@contextmanager
def unchanged() -> Iterator[None]:
    """Restore the process's global state after the block, for users of the library.

    That is the state of random numbers (torch on all devices, NumPy, Python), the number of torch's
    threads, cuDNN's flags, warnings, the environment, and the handler of Ctrl-C, which raises
    KeyboardInterrupt. One thread is in such a block at a time. Within it new tensors are float32 on
    the CPU, and autocast is off, whatever the defaults outside.
    """
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    with (
        _one_at_a_time,
        torch.random.fork_rng(gpus),
        torch.inference_mode(False),
        torch.autocast("cpu", enabled=False),
        torch.autocast("cuda", enabled=False),
        torch.device("cpu") if torch.get_default_device().type != "cpu" else nullcontext(),
        warnings.catch_warnings(),
        _interruptible(),
    ):
        numpy_state, python_state = np.random.get_state(), random.getstate()
        threads, environment = torch.get_num_threads(), dict(os.environ)
        dtype = torch.get_default_dtype()
        cudnn = torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)
            np.random.set_state(numpy_state)
            random.setstate(python_state)
            torch.set_num_threads(threads)
            torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = cudnn
            if os.environ != environment:
                os.environ.clear()
                os.environ.update(environment)
            keep_freed(False)
            release_freed()


@contextmanager
def _in_eval_mode(models: Iterable[Any]) -> Iterator[None]:
    """The user's own modules in eval mode, as before afterwards: copies run, and where the code of
    one refers to the original, that runs, too."""
    nets = [model.net if isinstance(model, Model) else model for model in models]
    modules = [part for net in nets if isinstance(net, nn.Module) for part in net.modules()]
    modes = [(module, module.training) for module in modules]
    try:
        for module in modules:
            module.training = False
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C as a KeyboardInterrupt that Lightning does not catch: it would end the process."""
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT)
    if not main or before is not signal.default_int_handler:
        yield
        return

    def stop(number: int, _frame: object) -> None:
        raise Stopped(128 + number)

    signal.signal(signal.SIGINT, stop)
    try:
        yield
    except Stopped as stopped:
        if stopped.code != 128 + signal.SIGINT:
            raise
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGINT, before)
