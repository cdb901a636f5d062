"""Functions, transformations and arrays as text for a record: the same in every process."""

import dataclasses
import functools
import hashlib
import re
import types
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
_INNER = ".<locals>"
_LINEN_FIELDS = ("parent", "name")


def describe(value: Any) -> str:
    """Where a function is defined, `module:name`, and a digest of what it holds, if anything.

    What a function holds are the values of a closure, of `functools.partial` and of defaults: two
    rates of `optax.adam` differ. Its code is not looked at. No address is ever part of the text.

    >>> describe(describe)
    'dfa_jax.train.described:describe'
    >>> describe(optax.sgd(0.1)) == describe(optax.sgd(0.1)) != describe(optax.sgd(0.2))
    True
    """
    if isinstance(value, optax.GradientTransformation):
        return _with_digest(place(value.update).partition(_INNER)[0], _spelt(value))
    if callable(value) and not isinstance(value, type):
        function = _unwrapped(value)
        inner = function.func if isinstance(function, functools.partial) else function
        spelt = _spelt(function)
        return spelt if spelt == place(inner) else _with_digest(place(inner), spelt)
    if isinstance(value, np.ndarray | jax.Array):
        return _spelt(value)
    return _ADDRESS.sub("", repr(value))


def _with_digest(name: str, content: str) -> str:
    return f"{name}#{hashlib.blake2b(content.encode(), digest_size=4).hexdigest()}"


def _unwrapped(value: Any) -> Any:
    """What `jax.jit` and its like were given."""
    while hasattr(value, "__wrapped__") and not isinstance(value, type):
        value = value.__wrapped__
    return value


def place(value: Any) -> str:
    """`module:name` of a function, or of the class of another object."""
    value = _unwrapped(value)
    named = value if hasattr(value, "__qualname__") or hasattr(value, "__name__") else type(value)
    name = getattr(named, "__qualname__", None) or named.__name__
    return f"{getattr(named, '__module__', None) or 'builtins'}:{name}"


def _spelt(value: Any, above: tuple[int, ...] = ()) -> str:
    """All that a value holds; `above` are the objects that it is inside of."""
    if id(value) in above:
        return "..."
    inside = functools.partial(_spelt, above=(*above, id(value)))
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return repr(value)
    if isinstance(value, np.ndarray | jax.Array):
        return _spelt_array(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {inside(one)}" for key, one in value.items()) + "}"
    if isinstance(value, set | frozenset):
        return place(value) + "(" + ", ".join(sorted(map(inside, value))) + ")"
    if isinstance(value, tuple | list):
        return place(type(value)) + "(" + ", ".join(map(inside, value)) + ")"
    held = _held(_unwrapped(value))
    return place(value) + ("(" + ", ".join(map(inside, held)) + ")" if held else "")


def _held(value: Any) -> list[Any]:
    """Values that an object is made of, as far as they can be known."""
    if isinstance(value, functools.partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, types.MethodType):
        return [value.__self__]
    if isinstance(value, types.FunctionType):
        cells = [_cell(cell) for cell in value.__closure__ or ()]
        return [*cells, *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        hidden = _LINEN_FIELDS if isinstance(value, nn.Module) else ()
        names = [field.name for field in dataclasses.fields(value) if field.name not in hidden]
        return [getattr(value, name) for name in names]
    return []


def _cell(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # it has none yet
        return None


def _spelt_array(value: Any) -> str:
    if isinstance(value, jax.Array) and jax.numpy.issubdtype(value.dtype, jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    array = np.asarray(value)
    content = hashlib.blake2b(np.ascontiguousarray(array).tobytes(), digest_size=8).hexdigest()
    return f"{array.dtype}{list(array.shape)}#{content}"
