"""A command's arguments in Hydra's grammar."""

import fnmatch
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, ListConfig

from experiments.cli import mistakes
from experiments.cli.config import CONF, composed
from netkin.errors import UserError, and_more

ROOT = CONF.parent
NAME = r"[\w.@/:*-]+"
GLOB = re.compile(r"source=glob\((.*)\)")


def spelled_out(overrides: Sequence[str]) -> list[str]:
    """Overrides in Hydra's grammar.

    model=NAME is model.members=[NAME], unless conf/model has it, and model=[A,B] is
    model.members=[A,B]; of experiment=relatives model=NAME is its setting. With --multirun,
    model=A,B is a sweep over two lists of one member. similarity=PATH is a file, and
    similarity.dir=FOLDER alone has the published 69.
    """
    spelled, lists = [], {*mistakes.options("model")}
    for text in overrides:
        key, _, value = text.partition("=")
        names = re.fullmatch(rf"{NAME}(?:,{NAME})*|\[{NAME}(?:,{NAME})*\]", value)
        if key == "model" and names and value not in lists:
            if "experiment=relatives" in overrides:
                text = f"relatives.model={value.strip('[]')}"
            elif value.startswith("["):
                text = f"model.members={value}"
            else:
                text = f"model.members={','.join(f'[{name}]' for name in value.split(','))}"
        elif text == "similarity=null":  # which it is unless given
            continue
        elif key == "similarity" and value != "sat69" and not value.startswith("{"):
            text = f"similarity={','.join(f'{{file: {file}}}' for file in value.split(','))}"
        spelled.append(text)
    keys = {text.partition("=")[0] for text in spelled}
    if "similarity.dir" in keys and "similarity" not in keys:
        spelled.append("similarity=sat69")
    return spelled


def arguments(script: str, given: Sequence[str]) -> list[str]:
    """A command's arguments; in a multirun, source=glob(*) becomes the members' names.

    Hydra's own glob() matches options of groups only. Raises UserError for a multirun over jobs of
    several devices.
    """
    parsed = get_args_parser().parse_args(list(given))
    if not parsed.multirun:
        return list(given)
    # Jobs of some launchers are new processes, which must be able to import `experiments`.
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])
    )
    parser = OverridesParser.create()
    fixed = [
        text
        for text in parsed.overrides
        if not GLOB.fullmatch(text) and not parser.parse_override(text).is_sweep_override()
    ]
    flags = [f"--config-dir={parsed.config_dir}"] if parsed.config_dir else []
    config = composed(Path(script).stem, [*flags, *fixed])
    devices = config.hardware.devices
    if devices != 1:
        command = shlex.join(["python", script, *fixed])
        raise UserError(
            f"hardware.devices={devices} in a multirun: all jobs would use the same devices. "
            "Either give each job one device (leave out hardware.devices), or split one run over "
            f"the devices, without -m: {command}"
        )
    return [_expanded(text, config) for text in given]


def _expanded(text: str, config: DictConfig) -> str:
    """source=glob(vit_*) as source=vit_s,vit_ti."""
    match = GLOB.fullmatch(text)
    if match is None:
        return text
    names = member_names(config.model.members)
    matching = fnmatch.filter(names, match[1].strip("'\""))
    if not matching:
        raise UserError(f"{text}: no member matches (they are {and_more(names, 20)})")
    return "source=" + ",".join(f"'{name}'" for name in matching)


def member_names(members: Any) -> list[str]:
    """The names of a list of members, as far as the config tells; empty for no list."""
    if not isinstance(members, list | ListConfig):
        return []
    return [m if isinstance(m, str) else str(m.get("name", m.get("timm"))) for m in members]
