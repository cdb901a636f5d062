"""The command line is the configuration: every field is an option, and nothing else is.

Oracle: the dataclasses themselves. A field that no option reaches would be frozen without a word.
"""

import dataclasses
import functools
import pathlib
import re
import runpy
import types
import typing

import flax.linen as nn
import jax.numpy as jnp
import pytest

from dfa_jax.errors import InputError
from dfa_jax.models import MLP, ConvNet
from dfa_jax.rules import RULES, DirectFeedbackAlignment, Shallow
from dfa_jax.train import TrainConfig
from dfa_jax.train.cli import MODELS, Parser, exit_on_bad_input, parse_config
from dfa_jax.train.config import changes, rule_name, to_dict

STARTS = {
    **{name: TrainConfig(rule=kind()) for name, kind in RULES.items()},
    **{name: TrainConfig(model=kind()) for name, kind in MODELS.items()},
}


type_hints = functools.cache(typing.get_type_hints)


def leaves(config, prefix=()):
    """`(path, type, value)` of every field that is no part of its own, by this test's own walk."""
    found, hints = [], type_hints(type(config))
    for field in dataclasses.fields(config):
        if field.init and not (isinstance(config, nn.Module) and field.name in ("parent", "name")):
            value = getattr(config, field.name)
            if field.metadata.get("in_code"):  # a function
                continue
            if dataclasses.is_dataclass(value):
                found += leaves(value, (*prefix, field.name))
            else:
                found.append(((*prefix, field.name), hints[field.name], value))
    return found


def another(hint, value):
    """A value of the type that differs from the given one, and how it is typed."""
    inner = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal:
        new = next(option for option in inner if option != value)
    elif typing.get_origin(hint) in (typing.Union, types.UnionType):
        return another(inner[0], value)
    elif typing.get_origin(hint) is tuple:
        new = ("layer_0", "layer_1") if inner[0] is str else (3, 2)
        return new, [str(part) for part in new]
    elif hint is bool:
        return not value, [str(not value)]
    elif hint is float:
        new = 0.125
    else:
        new = {int: 16, str: "mnist"}[hint]
    return new, [str(new)]


def get(config, path):
    for name in path:
        config = getattr(config, name)
    return config


def option(path):
    return "--" + ".".join(path).replace("_", "-")


CASES = [(start, *leaf) for start, config in STARTS.items() for leaf in leaves(config)]
UNIQUE = {(case[1], type(get(STARTS[case[0]], case[1][:-1])).__name__): case for case in CASES}


@pytest.mark.parametrize("case", UNIQUE.values(), ids=lambda case: f"{case[0]}{option(case[1])}")
def test_every_field_is_an_option(case):
    """Setting one option changes that field, and no other."""
    start, path, hint, value = case
    new, words = another(hint, value)
    found = parse_config(STARTS[start], [option(path), *words])
    assert get(found, path) == new
    assert type(get(found, path)) is type(new)
    unchanged = [leaf for leaf in leaves(found) if leaf[0] != path]
    assert unchanged == [leaf for leaf in leaves(STARTS[start]) if leaf[0] != path]
    if len(words) == 1:
        assert parse_config(STARTS[start], [f"{option(path)}={words[0]}"]) == found


@pytest.mark.parametrize("start", STARTS)
def test_record_and_command_line_agree(start):
    """Round trip: the options read off a record's `config` make the same configuration again."""
    config = STARTS[start]
    words = []
    for name in ("rule", "model"):
        spelled = {**{k.__name__: n for n, k in MODELS.items()}, **{n: n for n in RULES}}
        words += [f"--{name}", spelled[to_dict(config)[name]["name"]]]

    def write(stored, prefix):
        for name, value in stored.items():
            if isinstance(value, dict):
                write(value, f"{prefix}{name}.")
            elif name != "name" or prefix in ("data.", "optimizer."):
                values = value if isinstance(value, list) else [value]
                words.extend([f"--{prefix}{name}".replace("_", "-"), *map(str, values)])

    write(to_dict(config), "")
    assert parse_config(TrainConfig(seed=3), words) == config
    assert changes(to_dict(parse_config(TrainConfig(seed=3), words)), config) == []


def test_no_options_no_change():
    """The recipe's own configuration is what runs without options."""
    assert parse_config(STARTS["convnet"], []) == STARTS["convnet"]


def test_switching_a_part_brings_its_options():
    """--rule and --model may stand anywhere; the new part's options are known, the old one's are
    not."""
    found = parse_config(
        STARTS["backprop"],
        [
            *("--rule.feedback-scale", "2", "--model.channels", "4"),
            *("--rule", "direct_feedback_alignment", "--model", "convnet", "--sites", "layer_0"),
        ],
    )
    assert found.rule == DirectFeedbackAlignment(feedback_scale=2.0)
    assert found.model == ConvNet(channels=(4,))
    assert found.sites == ("layer_0",)
    with pytest.raises(InputError, match=r"unknown option '--model\.widths'"):
        parse_config(STARTS["mlp"], ["--model", "convnet", "--model.widths", "3"])
    assert (
        parse_config(STARTS["direct_feedback_alignment"], ["--rule", "shallow"]).rule == Shallow()
    )


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (["--data.num-train", "none"], None),
        (["--data.num-train", "None"], None),
        (["--data.num-train", "64"], 64),
        (["--data.data-dir", "none"], None),
        (["--data.data-dir", "/a b"], "/a b"),
        (["--model.use-bias", "false"], False),
        (["--model.use-bias", "TRUE"], True),
        (["--num-epochs", "1e-1"], 0.1),
        (["--model.widths", "5"], (5,)),
        (["--model.widths", "5", "6", "7"], (5, 6, 7)),
        (["--seed", "3", "--seed", "4"], 4),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, list) else "",
)
def test_values_are_read_by_type(words, value):
    """Optional, boolean, tuple and number; an argparse `type=bool` would read "false" as true."""
    path = words[0][2:].replace("-", "_").split(".")
    assert get(parse_config(TrainConfig(data=TrainConfig().data), words), path) == value


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rul", "shallow"], "unknown option '--rul'; did you mean '--rule'?"),
        (["--optimizer.learning_rate", "1"], "did you mean '--optimizer.learning-rate'?"),
        (["--optimiser.learning-rate=1"], "did you mean '--optimizer.learning-rate'?"),
        (["--ressume"], "unknown option '--ressume'; did you mean '--resume'?"),
        (["--rule", "shalow"], "unknown rule 'shalow'; did you mean 'shallow'?"),
        (["--model", "convnett"], "unknown model 'convnett'; did you mean 'convnet'?"),
        (["--batch", "3"], "unknown option '--batch'"),
        (["stray"], "unknown option 'stray'"),
        (["--batch-size", "many"], "argument --batch-size: invalid int value: 'many'"),
        (["--batch-size"], "argument --batch-size: expected one argument"),
        (["--data.num-train", "x"], "invalid int or none value: 'x'"),
        (["--model.use-bias", "yes"], "'yes' is neither true nor false"),
        (["--loss", "hinge"], "invalid choice: 'hinge'"),
        (["--model.widths"], "expected at least one argument"),
        (["--rule"], "argument --rule: expected one argument"),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, list) else "",
)
def test_what_cannot_be_read_is_refused_in_one_line(words, message, capsys):
    """Exit code 2 and a single line on standard error, with the nearest name where one is near."""
    scripts = Parser(add_help=False)
    scripts.add_argument("--resume", action="store_true")
    with pytest.raises(SystemExit) as exited, exit_on_bad_input("train.py"):
        parse_config(TrainConfig(), words, parents=[scripts])
    captured = capsys.readouterr()
    assert exited.value.code == 2
    assert captured.out == ""
    assert captured.err.startswith("train.py: error: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1


def test_faults_keep_their_traceback():
    """Only bad input is turned into a line: a fault of ours must stay visible."""
    with pytest.raises(ZeroDivisionError), exit_on_bad_input("train.py"):
        raise ZeroDivisionError


def test_a_full_disk_is_no_fault(capsys):
    """The device that is always full, of Linux itself: one line, whatever was being written."""
    with (
        pytest.raises(SystemExit) as exited,
        exit_on_bad_input("train.py"),
        open("/dev/full", "w") as file,
    ):
        file.write("{}")
    assert exited.value.code == 2
    said = capsys.readouterr().err
    assert "a file cannot be written ([Errno 28] No space left on device); make room" in said
    assert said.count("\n") == 1


def test_a_lack_of_memory_is_no_fault(capsys):
    """XLA's own words: sizes that no machine has are the user's, and 40 lines of ours hide them."""
    with pytest.raises(SystemExit), exit_on_bad_input("train.py"):
        jnp.zeros((1 << 22, 1 << 22)).block_until_ready()
    said = capsys.readouterr().err
    assert re.search(r"does not fit in memory \(.*Out of memory allocating 7\d+ bytes.*lower", said)
    assert said.count("\n") == 1


def test_a_message_of_several_lines_is_printed_as_one(capsys):
    """Messages may quote what other libraries said."""
    with pytest.raises(SystemExit), exit_on_bad_input("train.py"):
        raise InputError("first\nsecond")
    assert capsys.readouterr().err == "train.py: error: first second\n"


@pytest.mark.parametrize("start", ["direct_feedback_alignment", "convnet"])
def test_help_has_every_option_with_its_meaning(start, capsys, monkeypatch):
    """`--help` is the reference of the command line: each option, its meaning, its value now."""
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit) as exited:
        parse_config(STARTS[start], ["--help"])
    assert exited.value.code == 0
    text = capsys.readouterr().out
    for path, _, value in leaves(STARTS[start]):
        (entry,) = re.findall(rf"^  {option(path)} ((?:.+)(?:\n {{10,}}.+)?)", text, flags=re.M)
        meaning = re.split(r"\n? {2,}", entry)[-1]
        assert meaning.endswith(f"[{value}]"), entry
        assert len(meaning.removesuffix(f"[{value}]")) > 8, f"{option(path)} has no meaning"


def test_help_of_the_script_needs_no_recipe(capsys):
    """`train.py --help` is what a newcomer types first; the script's own options are there too."""
    root = pathlib.Path(__file__).parents[2]
    script = runpy.run_path(str(root / "scripts" / "train.py"))
    with pytest.raises(SystemExit) as exited:
        script["main"](["--help"])
    text = capsys.readouterr().out
    assert exited.value.code == 0
    for name in ("RECIPE", "--run-dir", "--resume", "--overwrite", "--rule", "--optimizer.b1"):
        assert name in text


def test_rules_are_named_as_registered():
    """The name in a record is the name on the command line; a user's own rule has its class's."""
    assert [rule_name(kind()) for kind in RULES.values()] == list(RULES)

    @dataclasses.dataclass(frozen=True)
    class Mine(Shallow):
        pass

    assert rule_name(Mine()) == "Mine"
    assert to_dict(TrainConfig(model=MLP((3,))))["model"] == {
        "name": "MLP",
        "widths": [3],
        "num_outputs": 10,
        "activation": "tanh",
        "use_bias": True,
        "kernel_init": "lecun_normal",
    }
