"""The families of timm's architectures, read off timm's files: to import them takes seconds."""

import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

REGISTERED = re.compile(r"^@register_model\s+def (\w+)\(", re.MULTILINE)
RENAMED = re.compile(r"^register_model_deprecations\(__name__, \{(.*?)\}\)", re.M | re.DOTALL)
EARLIER = re.compile(r"""^\s*['"](\w+)['"]\s*:""", re.MULTILINE)
OURS = {"gluon_xception65": "xception"}
"""What `netkin.zoo.xception` registers."""


@cache
def read_off() -> dict[str, str]:
    """The module of each architecture that timm's files register by name, also by an earlier one.
    Those that a user has registered are not among them."""
    spec, found = find_spec("timm"), dict(OURS)
    assert spec is not None and spec.submodule_search_locations
    for file in Path(spec.submodule_search_locations[0], "models").glob("*.py"):
        text = file.read_text(encoding="utf-8")
        earlier = EARLIER.findall("\n".join(RENAMED.findall(text)))
        found |= dict.fromkeys([*REGISTERED.findall(text), *earlier], file.stem)
    return found


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
