"""Bad input, refused by name: what was given, what was expected, and the remedy."""

import difflib
import fnmatch
import importlib.util
import sys
import typing
from collections.abc import Iterable


class InputError(ValueError):
    """A value that the user gave cannot be used; scripts print it as one line and exit with 2."""


class DivergedError(InputError):
    """The loss is no longer finite; a sweep over learning rates counts it as a rate too high."""


class SiteError(InputError):
    """A credit site is unknown, was not reached, or sits where its error cannot be delivered."""


class MissingExtraError(InputError):
    """A library is not installed that an extra of `pyproject.toml` has."""


def require(extra: str, purpose: str, *modules: str) -> None:
    """Refuses what needs a library that is not installed, before any work.

    Libraries outside of the core are imported in the functions that use them; whoever calls those
    first asks for all of them here.

    Args:
        extra: the one to install.
        purpose: what needs it.
        modules: top-level names, as they are imported.

    Raises:
        MissingExtraError: names the module and the command that installs it.

    >>> require("train", "training", "tqdm")
    """
    for name in modules:
        if sys.modules.get(name) is None and importlib.util.find_spec(name) is None:
            raise MissingExtraError(
                f"{purpose} needs the module '{name}', which is not installed: pip install"
                f" 'dfa_jax[{extra}]' (in a clone: pip install -e '.[{extra}]')"
            )


def reason(error: Exception, most: int = 200) -> str:
    """The message of another library in one line, its first `most` characters.

    >>> reason(ValueError("no\\n  room"))
    'no room'
    """
    return " ".join(str(error).split())[:most] or type(error).__name__


def unknown(kind: str, name: object, known: Iterable[object]) -> str:
    """The message for an unknown name, with the nearest known one.

    >>> unknown("learning rule", "backpropp", ["backprop", "shallow"])
    "unknown learning rule 'backpropp'; did you mean 'backprop'? Known: backprop, shallow"
    """
    names = [str(candidate) for candidate in known]
    nearest = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    hint = f"did you mean '{nearest[0]}'? " if nearest else ""
    return f"unknown {kind} '{name}'; {hint}Known: {', '.join(names) or 'none'}"


def select(kind: str, pattern: str, known: Iterable[str]) -> list[str]:
    """The names that a glob pattern matches.

    Raises:
        InputError: there are none.

    >>> select("variant", "tanh/*", ["tanh/backprop", "relu/backprop"])
    ['tanh/backprop']
    """
    names = list(known)
    if not (found := fnmatch.filter(names, pattern)):
        raise InputError(unknown(kind, pattern, names))
    return found


def check_choices(config: object, prefix: str = "") -> None:
    """Refuses a value that is none of its field's: of every field annotated as a `Literal`.

    Args:
        config: a dataclass instance.
        prefix: goes before the field's name in the message.

    Raises:
        InputError: names the field, the value, the nearest choice, and all of them.
    """
    for name, hint in typing.get_type_hints(type(config)).items():
        if typing.get_origin(hint) is typing.Literal:
            value, choices = getattr(config, name), typing.get_args(hint)
            if value not in choices:
                raise InputError(unknown(prefix + name, value, choices))
