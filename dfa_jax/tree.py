"""Arithmetic on pytrees of arrays, and nested dicts addressed by path."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Path = tuple[str, ...]

Flat = dict[Path, Any]
"""The leaves of a nested dict by path, as `flax.traverse_util.flatten_dict` gives them."""


def add(left: Any, right: Any) -> Any:
    """Leafwise sum of two trees of the same structure."""
    return jax.tree.map(jnp.add, left, right)


def size(tree: Any) -> int:
    """Number of scalars in all leaves (works on abstract arrays)."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def norm(tree: Any) -> Float[Array, ""]:
    """Euclidean norm of all leaves as one vector."""
    return jnp.sqrt(sum(jnp.vdot(leaf, leaf).real for leaf in jax.tree.leaves(tree)))


def get(tree: Mapping[str, Any], path: Path) -> Any:
    """The subtree of a nested dict at `path`.

    >>> get({"a": {"b": 1}}, ("a", "b"))
    1
    """
    for name in path:
        tree = tree[name]
    return tree


def put(tree: Mapping[str, Any], path: Path, value: Any) -> Any:
    """A nested dict with `value` at `path`; the given one is not changed.

    >>> put({"a": {"b": 1}}, ("a", "c"), 2)
    {'a': {'b': 1, 'c': 2}}
    """
    head, *rest = path
    return {**tree, head: put(tree.get(head, {}), tuple(rest), value) if rest else value}


def leaf_names(tree: Any) -> list[str]:
    """The leaves' names, in their order: keys, indices and attributes with `/` between them.

    >>> leaf_names({"heads": (1, 2), "loss": 3})
    ['heads/0', 'heads/1', 'loss']
    """
    paths = [path for path, _ in jax.tree.leaves_with_path(tree)]
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path in paths]


def leaves_by_name(tree: Any) -> dict[str, Any]:
    """The leaves by their names, in their order.

    >>> leaves_by_name({"heads": (1, 2)})
    {'heads/0': 1, 'heads/1': 2}
    """
    return dict(zip(leaf_names(tree), jax.tree.leaves(tree), strict=True))


def with_leaves(tree: Any, leaves: Mapping[str, Any]) -> Any:
    """The tree with these leaves, by name, in place of its own.

    >>> with_leaves({"a": 1, "b": (2, 3)}, {"b/0": 5})
    {'a': 1, 'b': (5, 3)}
    """
    own, structure = jax.tree.flatten(tree)
    named = zip(leaf_names(tree), own, strict=True)
    return jax.tree.unflatten(structure, [leaves.get(name, leaf) for name, leaf in named])


def cosine(left: Any, right: Any) -> Float[Array, ""]:
    """Cosine of the angle between two trees as vectors; NaN where either is zero.

    >>> cosine(jnp.array([1.0, 0.0]), jnp.array([3.0, 0.0])).item()
    1.0
    """
    inner = sum(jax.tree.leaves(jax.tree.map(jnp.vdot, left, right)))
    return inner / (norm(left) * norm(right))
