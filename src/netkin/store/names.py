"""Names of models and datasets as folders of the store."""

from urllib.parse import quote, unquote


def folder(name: str) -> str:
    """A model's name as one path component: "/", a leading "." and the like are percent-encoded."""
    quoted = quote(name, safe=" @+,()[]")
    return f"%2E{quoted[1:]}" if quoted.startswith(".") else quoted


def unfolded(component: str) -> str:
    """The name of a path component: the inverse of `folder`."""
    return unquote(component)


FLOAT32 = "32-true"
"""The precision of outcomes whose folder and identity name none."""


def outcomes_folder(precision: str) -> str:
    """The folder, in an attack's, of the outcomes of targets evaluated in a precision."""
    return "outcomes" if precision == FLOAT32 else f"outcomes-{precision}"
