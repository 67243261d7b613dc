"""The library's errors name arguments; the commands name config keys."""

from collections.abc import Iterator
from contextlib import contextmanager

from netkin.errors import UserError


@contextmanager
def prefixed(prefix: str) -> Iterator[None]:
    """Put a prefix before the message of a UserError that is raised in the block.

    For example, "size must be ..." becomes "select.size must be ..." under `prefixed("select.")`.
    """
    try:
        yield
    except UserError as error:
        if type(error) is not UserError:  # StoreError and others concern no key
            raise
        raise UserError(f"{prefix}{error}") from None
