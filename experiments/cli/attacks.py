"""Several attacks in one run, each composed from its option of conf/attack."""

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, ListConfig, OmegaConf

from experiments.cli.setting import build_attack
from netkin.attacks import Attack
from netkin.errors import UserError, near


def attack_specs(config: DictConfig) -> list[tuple[str, Attack]]:
    """The attacks to compare, with their names in figures.

    Each is composed as by `attack=option`. Overrides of attack.* on the command line apply to each
    attack that has the setting; an entry's own settings take precedence.
    """
    entries = config.attacks
    if not isinstance(entries, ListConfig) or len(entries) < 2:
        raise UserError(
            "attacks must list two or more, such as [pgd,{attack: pgd, steps: 10}], got "
            f"{entries}"
        )
    overrides = HydraConfig.get().overrides.task
    others = [text for text in overrides if not text.startswith(("attack", "+attack"))]
    parsed = OverridesParser.create().parse_overrides(
        [text for text in overrides if text.startswith("attack.")]
    )
    shared = {each.key_or_group.removeprefix("attack."): each.value() for each in parsed}
    specs: dict[str, Attack] = {}
    for entry in entries:
        settings = dict(entry) if isinstance(entry, DictConfig) else {"attack": entry}
        option = settings.pop("attack", None)
        if not isinstance(option, str):
            raise UserError(
                f"an entry of attacks is an option or {{attack: option, ...}}, got {entry}"
            )
        label = f"{option} ({_words(settings)})" if settings else option
        if label in specs:
            raise UserError(f"attacks lists {label} twice")
        composed = compose("evaluate", overrides=[*others, f"attack={option}"])
        known = [str(key) for key in composed.attack]
        for key in settings:
            if key not in known:
                raise UserError(f"attack {option} has no setting {key!r}{near(str(key), known)}")
        settings = {k: v for k, v in shared.items() if k.split(".")[0] in known} | settings
        for key, value in settings.items():
            OmegaConf.update(composed.attack, str(key), value)
        spec = build_attack(composed, option)
        for other, earlier in specs.items():
            if (spec.name, spec.identity) == (earlier.name, earlier.identity):
                raise UserError(
                    f"attacks: {other} and {label} are the same attack, since attack.* on the "
                    "command line applies to each; choose others with attacks=[...]"
                )
        specs[label] = spec
    return list(specs.items())


def _words(settings: dict) -> str:
    return ", ".join(f"{key} = {value}" for key, value in settings.items())
