"""A configuration as a command line: every field of every part is an option.

`--rule NAME` and `--model NAME` choose the part; `--rule.feedback-scale 0.5` sets a field of it.
"""

import argparse
import contextlib
import dataclasses
import errno
import functools
import re
import sys
import types
import typing
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NoReturn

import flax.linen as nn

from dfa_jax import errors
from dfa_jax.data import GaussianTargets, ImageData, MarkovData, TextData
from dfa_jax.models import MLP, ConvNet, LocalMixer, Transformer
from dfa_jax.rules import RULES, ObjectiveRule
from dfa_jax.train import alarm
from dfa_jax.train.config import TrainConfig, config_fields
from dfa_jax.train.described import describe

MODELS: dict[str, type[nn.Module]] = {
    "mlp": MLP,
    "convnet": ConvNet,
    "local_mixer": LocalMixer,
    "transformer": Transformer,
}
ESTIMATORS = {name: rule for name, rule in RULES.items() if issubclass(rule, ObjectiveRule)}
DATA = {
    "images": ImageData,
    "text": TextData,
    "markov": MarkovData,
    "gaussian_targets": GaussianTargets,
}
PARTS: dict[str, dict[str, Any]] = {
    "rule": RULES,
    "rule.estimator": ESTIMATORS,
    "model": MODELS,
    "data": DATA,
}
_NO_MEMORY = ("RESOURCE_EXHAUSTED", "Out of memory allocating")  # as XLA says it
_TYPED = (int, float, str)
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}


@contextlib.contextmanager
def exit_on_bad_input(script: str) -> Iterator[None]:
    """Bad input becomes one line on standard error and exit code 2; faults keep their traceback.

    So does a disk that is full or cannot be written to, and a lack of memory. Other processes of
    the run hear of it.
    """
    try:
        yield
    except Exception as error:
        said = _blamed(error)
        is_worth_saying = alarm.ring(said or errors.reason(error))
        if not said:
            raise
        if is_worth_saying:
            print(f"{script}: error: {said}", file=sys.stderr)
        raise SystemExit(2) from None


def _blamed(error: Exception) -> str:
    """What to say of bad input, or of no room on disk or in memory, in one line; "" of a fault."""
    if isinstance(error, errors.InputError):
        return " ".join(str(error).splitlines())
    if isinstance(error, OSError) and error.errno in _NO_ROOM:
        remedy = "make room, or let it be written to, and give the same command again"
        return f"a file cannot be written ({error}); {remedy}"
    if isinstance(error, MemoryError) or any(said in str(error) for said in _NO_MEMORY):
        return (
            f"the run does not fit in memory ({errors.reason(error, 120)}); lower --batch-size,"
            " --examples-at-once or the model's sizes, or split it over devices"
        )
    return ""


class Parser(argparse.ArgumentParser):
    """Refuses bad input as the library does, and guesses what a misspelt option was to be."""

    def __init__(self, **options: Any):
        super().__init__(
            allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter, **options
        )

    def error(self, message: str) -> NoReturn:
        """One line, as `InputError`."""
        raise errors.InputError(message)

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Parses all arguments; an unknown one is refused with the nearest option."""
        namespace, unknown = self.parse_known_args(arguments)
        if unknown:
            option = unknown[0].split("=")[0]
            raise errors.InputError(_unknown_option(option, sorted(self._option_string_actions)))
        return namespace


def parse_config(
    config: TrainConfig, arguments: Sequence[str], *, parents: Sequence[Parser] = ()
) -> TrainConfig:
    """The configuration with the command line's options put in.

    Args:
        config: the defaults.
        arguments: the command line, without what `parents` have read.
        parents: the script's own options, for `--help` and to guess misspelt ones.

    Raises:
        InputError: an unknown option (with the nearest known one), or a value of the wrong type.

    >>> parse_config(TrainConfig(), ["--rule", "shallow", "--optimizer.learning-rate", "0.1"]).rule
    Shallow()
    """
    parser = Parser(add_help=False)
    for part, choices in PARTS.items():
        parser.add_argument(f"--{part}", help=f"one of {', '.join(choices)}")
    chosen, rest = parser.parse_known_args(arguments)
    for part, choices in PARTS.items():
        name = getattr(chosen, part)
        if name is not None:
            if name not in choices:
                raise errors.InputError(errors.unknown(part, name, choices))
            config = _choose(config, part.split("."), choices[name]())
    full = Parser(parents=[*parents, parser], usage="%(prog)s RECIPE [options]")
    _add_options(full, config, "")
    positional = [action for action in full._actions if not action.option_strings]
    for action in positional:
        full._remove_action(action)  # the script has read its positional arguments already
    return _put_in(config, vars(full.parse(rest)), "")


def _choose(config: Any, path: Sequence[str], value: Any) -> Any:
    """The configuration with another part at `path`."""
    name, *inner = path
    if name not in {field.name for field in config_fields(config)}:
        known = ", ".join(field.name for field in config_fields(config)) or "none"
        raise errors.InputError(
            f"{type(config).__name__} has no part '{name}' to choose; its options are {known}"
        )
    if inner:
        value = _choose(getattr(config, name), inner, value)
    return dataclasses.replace(config, **{name: value})


def _add_options(parser: Parser, config: Any, prefix: str) -> None:
    """One option a field, parts by their dotted path; a default stays unset until given."""
    hints = typing.get_type_hints(type(config))
    meanings = _attribute_docs(type(config))
    for field in config_fields(config):
        value = getattr(config, field.name)
        name = prefix + field.name
        if _is_part(value):
            _add_options(parser, value, name + ".")
            continue
        reader = _reader(hints[field.name])
        if field.metadata.get("in_code") or reader is None:
            continue
        meaning = meanings.get(field.name, "").replace("%", "%%")
        options: dict[str, Any] = reader | ({"nargs": "*"} if value == () else {})
        parser.add_argument(
            "--" + name.replace("_", "-"),
            dest=name,
            default=argparse.SUPPRESS,
            help=f"{meaning} [{describe(value) if callable(value) else value}]",
            **options,
        )


def _put_in(config: Any, given: dict[str, Any], prefix: str) -> Any:
    """Replaces the given fields, parts first."""
    changes = {}
    for field in config_fields(config):
        value, name = getattr(config, field.name), prefix + field.name
        if _is_part(value):
            new = _put_in(value, given, name + ".")
            if new != value:
                changes[field.name] = new
        elif name in given:
            changes[field.name] = given[name]
    if isinstance(config, nn.Module):
        return config.clone(**changes) if changes else config
    return dataclasses.replace(config, **changes) if changes else config


def _is_part(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _reader(hint: Any) -> dict[str, Any] | None:
    """argparse keywords that read a field of this type; None if nothing that is typed can be."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        readers = [_reader(option) for option in inner if option is not type(None)]
        known = [reader for reader in readers if reader is not None]
        if len(known) != 1 or type(None) not in inner:
            return known[0] if len(known) == 1 else None
        return {"type": _optional(known[0].get("type", str)), "metavar": "VALUE"}
    if origin is Literal:
        return {"choices": inner}
    if origin is tuple and inner[0] in _TYPED:
        return {"type": inner[0], "nargs": "+", "action": _Tuple, "metavar": "VALUE"}
    if hint is bool:
        return {"type": _boolean, "metavar": "true|false"}
    return {"type": hint, "metavar": "VALUE"} if hint in _TYPED else None


class _Tuple(argparse.Action):
    def __call__(
        self, parser: Any, namespace: Any, values: Any, option_string: str | None = None
    ) -> None:
        """Stores the values as the tuple that a frozen configuration needs."""
        setattr(namespace, self.dest, tuple(values))


@functools.cache
def _optional(kind: Any) -> Any:
    def read(text: str) -> Any:
        return None if text.lower() == "none" else kind(text)

    read.__name__ = f"{kind.__name__} or none"
    return read


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"'{text}' is neither true nor false")
    return text.lower() == "true"


def _attribute_docs(kind: type) -> dict[str, str]:
    """The `Attributes:` section of a docstring, by field."""
    section = (kind.__doc__ or "").partition("Attributes:\n")[2]
    entries = re.findall(r"^ {8}(\w+): ((?:.+)(?:\n {12}.+)*)", section, flags=re.M)
    return {name: re.sub(r"\s+", " ", text).strip() for name, text in entries}


def _unknown_option(option: str, known: list[str]) -> str:
    message = errors.unknown("option", option, known)
    return message if len(known) <= 12 else message.split(" Known: ")[0] + " See --help"
