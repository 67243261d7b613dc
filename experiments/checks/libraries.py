"""Other people's attack packages, which netkin is compared with where they are installed."""

import importlib
import warnings
from importlib.metadata import PackageNotFoundError, version
from typing import Any


def installed(package: str) -> Any | None:
    """An installed package, imported; None where there is none (a folder of its name is none)."""
    try:
        version(package)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # foolbox uses SciPy's old names
            return importlib.import_module(package)
    except (ImportError, PackageNotFoundError):
        return None
