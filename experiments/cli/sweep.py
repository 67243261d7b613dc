"""Arguments of a multirun (-m), before Hydra starts its jobs."""

import fnmatch
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from netkin.errors import UserError, and_more

ROOT = Path(__file__).parents[2]
GLOB = re.compile(r"source=glob\((.*)\)")


def arguments(script: str, given: Sequence[str]) -> list[str]:
    """A command's arguments for Hydra: in a multirun, source=glob(*) becomes the members' names.

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
    fixed = without_sweeps(parsed.overrides)
    config = composed(Path(script).stem, fixed, parsed.config_dir)
    devices = config.hardware.devices
    if devices != 1:
        command = shlex.join(["python", script, *fixed])
        raise UserError(
            f"hardware.devices={devices} in a multirun: all jobs would use the same devices. "
            "Either give each job one device (leave out hardware.devices), or split one run over "
            f"the devices, without -m: {command}"
        )
    return [_expanded(text, config) for text in given]


def without_sweeps(overrides: Sequence[str]) -> list[str]:
    """The overrides with one value, which all jobs of a multirun have."""
    parser = OverridesParser.create()
    return [
        text
        for text in overrides
        if not GLOB.fullmatch(text) and not parser.parse_override(text).is_sweep_override()
    ]


def composed(name: str, overrides: Sequence[str], config_dir: str | None = None) -> DictConfig:
    """A script's config with these overrides, and options of a user's own folder."""
    more = [f"hydra.searchpath=[file://{Path(config_dir).resolve()}]"] if config_dir else []
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose(name, overrides=[*overrides, *more])


def _expanded(text: str, config: DictConfig) -> str:
    """source=glob(vit_*) as source=vit_s,vit_ti."""
    match = GLOB.fullmatch(text)
    if match is None:
        return text
    pattern = match.group(1).strip("'\"")
    members = config.model.members
    names = [m if isinstance(m, str) else str(m.get("name", m.get("timm"))) for m in members]
    matching = fnmatch.filter(names, pattern)
    if not matching:
        raise UserError(f"{text}: no member matches (they are {and_more(names, 20)})")
    return "source=" + ",".join(f"'{name}'" for name in matching)
