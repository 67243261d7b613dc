"""timm's architectures: fitted to a dataset's images, or with their published weights."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from netkin.errors import UserError, first_line
from netkin.zoo.member import Member
from netkin.zoo.preprocessing import Preprocessing
from netkin.zoo.published import custom_load, origin
from netkin.zoo.task import Task

log = logging.getLogger(__name__)


def fitted(member: Member, task: Task, own: Preprocessing, seed: int) -> nn.Module:
    """The architecture with the first of the task's arguments that make it take its images."""
    size = own.view.input_size
    images = torch.zeros(2, len(own.mean), size, size)
    failure = None
    for fit in task.fit:
        kwargs = {"num_classes": task.num_classes, **fit, **_timm_kwargs(member)}
        torch.manual_seed(seed)
        try:
            net = timm.create_model(member.timm, pretrained=False, **kwargs)
            with torch.no_grad():
                net.eval()(images)
        except Exception as error:  # timm's architectures refuse in a dozen ways
            failure = failure or error
            log.info("%s does not take %s: %s", member.name, kwargs, error)
        else:
            return net.train()
    raise UserError(
        f"{member.name} ({member.timm}) cannot be built for {size} x {size} images "
        f"({first_line(failure)}); give it other kwargs or another input_size"
    )


def pretrained(member: Member, weights: Path | None) -> nn.Module:
    """The architecture as published, with the published weights in `weights` unless it is the
    member's own checkpoint, which `load_weights` checks and loads."""
    published = origin(member.timm)
    file = None if member.checkpoint or weights is None else str(weights)
    # The file is the only source of weights, so that timm fetches nothing.
    config = {**published.config, "source": "", "hf_hub_id": None, "url": "", "file": file}
    if file is not None:
        config["custom_load"] = custom_load(published.config, Path(file))
    kwargs = {**published.arguments, **_timm_kwargs(member)}
    trained = {
        "num_classes": published.config.get("num_classes"),
        "in_chans": (published.config.get("input_size") or [3])[0],
        **published.arguments,  # timm exports both
    }
    for key in ("num_classes", "in_chans"):
        if file and kwargs.get(key, trained[key]) != trained[key]:
            raise UserError(
                f"{member.name}: kwargs.{key}={kwargs[key]} would put a layer of random weights "
                f"into the published {member.timm}; leave it out, or give a checkpoint"
            )
    create = partial(
        timm.create_model,
        published.architecture,
        pretrained=file is not None,
        pretrained_cfg=config,
    )
    try:
        if member.input_size in (None, published.config.get("input_size", [None])[-1]):
            return create(**kwargs)
        return _resized(create, kwargs, int(member.input_size or 0))
    except Exception as error:  # timm's architectures refuse in a dozen ways
        with_file = f" with the weights {file}" if file else ""
        reason = first_line(error)
        if "weights_only" in reason:  # timm advises to load it nevertheless
            reason = "they hold pickled objects, which are not loaded because they can run code"
        raise UserError(
            f"{member.name} ({member.timm}) cannot be built{with_file} ({reason})"
        ) from None


def _resized(create: Callable[..., nn.Module], kwargs: dict, size: int) -> nn.Module:
    """A published model for another input size (img_size where timm takes that), and tried."""
    try:
        net = create(**{"img_size": size, **kwargs})
    except TypeError:  # most convolutional networks take any size
        net = create(**kwargs)
    training = net.training
    with torch.no_grad():
        net.eval()(torch.zeros(1, 3, size, size))
    return net.train(training)


def _timm_kwargs(member: Member) -> dict[str, Any]:
    channels = {"in_chans": member.in_chans} if member.in_chans not in (None, 3) else {}
    return {**channels, **member.kwargs}
