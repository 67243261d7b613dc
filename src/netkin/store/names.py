"""Names of models and datasets as folders of the store."""

from urllib.parse import quote, unquote


def folder(name: str) -> str:
    """A model's name as one path component: "/", a leading "." and the like are percent-encoded."""
    quoted = quote(name, safe=" @+,()[]")
    return f"%2E{quoted[1:]}" if quoted.startswith(".") else quoted


def unfolded(component: str) -> str:
    """The name of a path component: the inverse of `folder`."""
    return unquote(component)
