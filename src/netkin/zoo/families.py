"""The families of timm's architectures, read off timm's files: to import them takes seconds."""

import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

REGISTERED = re.compile(r"^@register_model\s+def (\w+)\(", re.MULTILINE)


@cache
def read_off() -> dict[str, str]:
    """The module of each architecture that timm's files, and netkin's own, register by name.

    Renamed architectures and those that a user has registered are not among them.
    """
    spec = find_spec("timm")
    assert spec is not None and spec.submodule_search_locations
    files = Path(spec.submodule_search_locations[0], "models").glob("*.py")
    return {
        name: file.stem
        for file in (*files, Path(__file__).with_name("xception.py"))
        for name in REGISTERED.findall(file.read_text(encoding="utf-8"))
    }


def timm_family(name: str) -> str:
    """The module of timm that has the architecture of a name, or "unknown"."""
    if family := read_off().get(name.partition(".")[0]):
        return family
    import timm
    from timm.models import split_model_name_tag
    from timm.models._registry import get_deprecated_models

    architecture, _ = split_model_name_tag(get_deprecated_models().get(name) or name)
    if not timm.is_model(architecture):
        return "unknown"
    return timm.model_entrypoint(architecture).__module__.split(".")[-1]
