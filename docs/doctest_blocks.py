"""Shows the doctests of docstrings as code blocks on the pages of the API."""

import re
from typing import Any

import griffe

_DOCTEST = re.compile(r"^>>> .*(?:\n.+)*", flags=re.M)


class DoctestBlocks(griffe.Extension):
    """Fences every doctest: a prompt line and all lines after it up to a blank one."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrites one docstring."""
        del kwargs  # the loader
        if obj.docstring:
            obj.docstring.value = fence_doctests(obj.docstring.value)


def fence_doctests(text: str) -> str:
    """The docstring with its doctests in fences."""
    return _DOCTEST.sub(lambda found: f"```pycon\n{found[0]}\n```", text)
