"""How related are two image classifiers? Similarity by adversarial transfer.

    import netkin
    result = netkin.compare({"a": net_a, "b": net_b}, images, labels, eps=8 / 255)

See `netkin.compare`. Importing this module imports neither torch nor anything else that is slow.
"""

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from netkin.api import Model, Result, compare
    from netkin.errors import UserError

__version__ = "0.1.0"
__all__ = ["Model", "Result", "UserError", "compare"]

# Nothing is printed unless the user sets up logging.
logging.getLogger(__name__).addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    """The names of `__all__`, imported when they are first used."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    module = importlib.import_module("netkin.errors" if name == "UserError" else "netkin.api")
    value = globals()[name] = getattr(module, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
