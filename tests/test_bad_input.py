"""Whatever is wrong with the input: one clear line on standard error, exit code 2, no traceback.

Oracle: the contract of `exit_on_bad_input`. Each message names what was given, what was expected
and, where there is one, the remedy. Most cases run the scripts' own `main` in this process; the
last ones start real processes, whose libraries might add lines of their own.
"""

import importlib.util
import os
import pathlib
import re
import shutil
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

import dfa_jax
from dfa_jax.models import MLP, from_linen
from dfa_jax.rules import DirectFeedbackAlignment, DirectRandomTargetProjection, functional
from dfa_jax.train import fit
from dfa_jax.train.cli import exit_on_bad_input
from dfa_jax.types import Batch
from tests import helpers
from tests.train import small

SCRIPTS = pathlib.Path(__file__).parents[1] / "scripts"
SMALL = (
    "--data.num-train 64 --data.num-test 24 --batch-size 16 --num-epochs 1 --quiet --run-dir run"
)
QUICK = ["quickstart", *SMALL.split(), "--alignment-examples", "0"]


def script(name):
    """A script's `main`, which leaves this process's allocator and caches alone."""
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.prepare_process = lambda: None
    return module.main


@pytest.fixture
def refused(capsys, tmp_path, monkeypatch):
    """`refused(expected, run)` runs and checks the exit code and the one line."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)

    def check(expected, run):
        capsys.readouterr()
        with pytest.raises(SystemExit) as exited, exit_on_bad_input("train.py"):
            run()
        captured = capsys.readouterr()
        assert exited.value.code == 2
        assert captured.err.count("\n") == 1
        assert captured.err.startswith("train.py: error: ")
        assert re.search(expected, captured.err), captured.err
        assert captured.out == ""

    return check


OPTIONS = {
    "unknown rule": ("--rule shalow", "unknown rule 'shalow'; did you mean 'shallow'. Known: "),
    "unknown model": ("--model convnett", "unknown model 'convnett'; did you mean 'convnet'"),
    "unknown option": ("--optimizer.learning_rate 1", "did you mean '--optimizer.learning-rate'"),
    "another rule's option": ("--rule shallow --rule.decay 1", "unknown option '--rule.decay'"),
    "unknown choice": ("--loss hinge", "--loss: invalid choice: 'hinge' .*softmax_cross_entropy"),
    "unknown data set": ("--data.name mnits", "data set 'mnits'; did you mean 'mnist'.*searched"),
    "missing data set": (
        "--data.name mnist --data.data-dir nowhere",
        "'mnist' is not in nowhere: get it with .*dfa_jax.data.prepare mnist",
    ),
    "unknown site": ("--sites layer_0 layr_1", "credit site 'layr_1'; did you mean 'layer_1'"),
    "site at the outputs": ("--sites *", "'readout' is the model's output.* leave it out"),
    "not a number": ("--batch-size many", "--batch-size: invalid int value: 'many'"),
    "no value": ("--seed", "--seed: expected one argument"),
    "outputs that are not classes": (
        "--model.num-outputs 7",
        r"outputs are \(16, 7\); .*'digits' needs \(16, 10\): set .* to 10",
    ),
    "batch that does not divide": ("--batch-size 12", "batch_size 12 .* 8 devices .* use 16"),
    "mesh that does not divide": (
        "--model-axis 3",
        "model_axis is 3.* 8 devices; choose a divisor",
    ),
    "mesh that splits no width": (
        "--model-axis 4 --model.widths 15 9",
        r"model_axis is 4, which divides none of MLP's widths \(9, 10, 15\); choose a divisor",
    ),
    "batch larger than the data": (
        "--batch-size 128",
        "batch_size is 128 .* 64 .*lower batch_size",
    ),
    "more data than there is": (
        "--data.num-train 9999",
        "num_train is 9999 but .* 1437 .*lower it",
    ),
    "no examples": ("--data.num-train 0", "num_train is 0; expected a positive integer"),
    "empty batch": ("--batch-size 0", "batch_size is 0; expected a positive"),
    "negative epochs": ("--num-epochs -1", "num_epochs is -1.0; expected a positive finite number"),
    "endless training": (
        "--num-epochs inf",
        "num_epochs is inf; expected a positive finite number",
    ),
    "never evaluated": ("--eval-every nan", "eval_every is nan; expected a positive finite number"),
    "negative seed": ("--seed -1", "seed is -1; expected an integer from 0"),
    "huge seed": ("--seed 99999999999999999999", "seed is 9{20}; expected an integer from 0"),
    "negative rate": (
        "--optimizer.learning-rate -1",
        "optimizer.learning_rate is -1.0; expected a",
    ),
    "negative decay": ("--optimizer.weight-decay -1", "optimizer.weight_decay is -1.0; expected a"),
    "no feedback": ("--rule.feedback-scale 0", "feedback_scale is 0.0; expected a positive finite"),
    "negative width": ("--model.widths 8 -3", "MLP does not run on inputs .*check its sizes"),
    "no units": ("--model.widths 0", "MLP .*on inputs .*check its sizes"),
    "image too small": (
        "--model convnet --model.channels 2 2 2 2",
        r"ConvNet .*on inputs \(16, 8, 8, 1\) .*check its sizes",
    ),
    "loss that diverges": (
        "--optimizer.name sgd --optimizer.learning-rate 1e38 --rule shallow",
        r"loss is (nan|inf) .*step.*; lower --optimizer.learning-rate \(now 1e\+38\)",
    ),
    "resume and overwrite": ("--resume --overwrite", "--resume and --overwrite exclude each other"),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options(refused, name):
    """A wrong option of `scripts/train.py`."""
    words, expected = OPTIONS[name]
    refused(expected, lambda: script("train")([*QUICK, *words.split()]))


RECIPES = {
    "unknown recipe": ("train", "quickstat", "recipe 'quickstat'; did you mean 'quickstart'"),
    "no recipe": ("train", "--quiet", "which RECIPE.* quickstart"),
    "a path that is none": ("train", "../setup.py", "unknown recipe"),
    "unknown recipe to reproduce": ("reproduce", "quickstat", "did you mean 'quickstart'"),
    "nothing to reproduce": ("reproduce", "", "which RECIPE"),
    "no seeds": ("reproduce", "quickstart --seeds 0", "0 seeds; expected at least 1"),
    "unknown option to reproduce": ("reproduce", "--lits", "did you mean '--list'"),
}


@pytest.mark.parametrize("name", RECIPES)
def test_recipes(refused, name):
    """A recipe that is none, or that is asked for something it cannot do."""
    which, words, expected = RECIPES[name]
    refused(expected, lambda: script(which)(words.split()))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of the base options, made once."""
    directory = tmp_path_factory.mktemp("run")
    here = pathlib.Path.cwd()
    os.chdir(directory)
    try:
        script("train")([*QUICK, "--rule", "shallow"])
    finally:
        os.chdir(here)
    return directory / "run"


def cut_configuration(run):
    path = run / "config.json"
    path.write_text(path.read_text()[:40])


def empty_checkpoint(run):
    (newest,) = (run / "checkpoints").glob("[0-9]*")
    shutil.rmtree(newest / "state")


def foreign(run):
    (run / "config.json").unlink()


DIRECTORIES = {
    "run that is there": (None, "", "holds a run already; add --resume"),
    "another configuration": (None, "--resume --seed 5", "seed: 0 -> 5"),
    "another rule": (None, "--resume --rule backprop", "rule.name: shallow -> backprop"),
    "half-written configuration": (cut_configuration, "--resume", "config.json is damaged"),
    "half-written checkpoint": (
        empty_checkpoint,
        "--resume",
        "cannot be read .*moved to .*no other is left: start again with --overwrite",
    ),
    "no run": (foreign, "--overwrite", "exists and is not a run .*choose another folder"),
    "a path below a file": (None, "--run-dir run/config.json/x", "cannot be used .*written to"),
    "a file": (None, "--run-dir run/config.json", "run/config.json is a file; choose another path"),
    "a bucket": (
        None,
        "--run-dir gs://mine/run",
        "gs:/mine/run is an address and no folder; mount",
    ),
    "a read-only place": (None, "--run-dir /proc/dfa_jax_run", "/proc/dfa_jax_run cannot be used"),
}


@pytest.mark.parametrize("name", DIRECTORIES)
def test_run_directories(refused, run, tmp_path, name):
    """A run directory that is taken, damaged, foreign, or cannot be written to."""
    damage, words, expected = DIRECTORIES[name]
    shutil.copytree(run, tmp_path / "run")
    if damage:
        damage(tmp_path / "run")
    refused(expected, lambda: script("train")([*QUICK, "--rule", "shallow", *words.split()]))


class WithoutBatchAxis(nn.Module):
    @nn.compact
    def __call__(self, x):
        bias = nn.Dense(6, name="layer_0")(jnp.ones(3))
        return nn.Dense(10)(x.reshape(x.shape[0], -1)) + nn.Dense(10)(bias)[None]


LAST_HIDDEN = DirectFeedbackAlignment(error_tap="last_hidden")


def fit_module(module, **changes):
    fit(small.config("direct_feedback_alignment", model=module, **changes), progress=False)


def start(rule, module, sites, batch):
    model = from_linen(module, sites, batch.inputs)

    def run(key):
        params, state = rule.init(key, model, model.init(key, batch.inputs), batch)
        return functional.estimate(rule, model, helpers.LOSS, params, state, (), batch, key).grads

    jax.eval_shape(run, jax.random.key(0))


MODELS = {
    "site without batch axes": (
        lambda: fit_module(WithoutBatchAxis()),
        r"'layer_0' has activity \(6,\), whose first axis is not that of the examples",
    ),
    "no site": (lambda: fit_module(MLP(), sites=()), "no credit site was given"),
    "last_hidden on a stack": (
        lambda: start(LAST_HIDDEN, helpers.Stack("scan"), "layers", helpers.images()),
        "last_hidden.*'layers'.* a stack of layers; .* use error_tap='logits'",
    ),
    "regression under DRTP": (
        lambda: start(
            DirectRandomTargetProjection(),
            MLP((4,), 3),
            "layer_0",
            Batch(jnp.ones((4, 2)), jnp.ones((4, 3))),
        ),
        r"integer labels \(4,\); the targets are float32 \(4, 3\).*use another rule",
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_models(refused, name):
    """A model, or a rule on a model, that cannot work: the same line for who calls the library."""
    run, expected = MODELS[name]
    refused(expected, run)


PROCESSES = {
    "a loss": ("train.py", [*QUICK, *OPTIONS["loss that diverges"][0].split()], "; lower --opt"),
    "a data set": ("train.py", [*QUICK, "--data.name", "mnist"], "'mnist' is not in"),
    "a recipe": ("reproduce.py", ["quickstat"], "unknown recipe 'quickstat'"),
}


@pytest.mark.parametrize(
    "name",
    [
        "a recipe",
        *(pytest.param(n, marks=pytest.mark.slow) for n in PROCESSES if n[2:] != "recipe"),
    ],
)
def test_processes(name, tmp_path):
    """Oracle: the shell. Exit code 2, nothing on standard output, and one line on standard error
    even though TensorFlow Datasets, absl and XLA like to write there."""
    file, words, expected = PROCESSES[name]
    root = pathlib.Path(dfa_jax.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root), "HOME": str(tmp_path)}
    environment["JAX_COMPILATION_CACHE_DIR"] = str(jax.config.jax_compilation_cache_dir)
    environment.pop("TFDS_DATA_DIR", None)
    done = subprocess.run(
        [sys.executable, SCRIPTS / file, *words],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"{file}: error: ")
    assert expected in done.stderr


WRONG_CHOICES = {  # what is written in Python: what the message says
    "ActivityForwardGradient(noise='gausian')": "unknown noise 'gausian'; did you mean 'gaussian'",
    "ActivityForwardGradient(sharing='pair')": "unknown sharing 'pair'; did you mean 'pairs'",
    "WeightForwardGradient(draws='loop')": "unknown draws 'loop'; Known: scan, vmap",
    "WeightForwardGradient(combination='sum')": "unknown combination 'sum'",
    "GradientGuess(guess='noise')": "unknown guess 'noise'",
    "LocalLosses(aggregator='fast')": "unknown aggregator 'fast'; Known: fused, naive",
    "LocalLosses(num_groups=0)": "num_groups is 0; expected 1",
    "LocalLosses(Shallow())": "estimator is Shallow(), which answers",
    "DirectFeedbackAlignment(error_encoding='signs')": "unknown error_encoding 'signs'",
    "made(MLP(activation='tanhh'))": "unknown activation 'tanhh'; did you mean 'tanh'",
    "made(ConvNet(activation='x'))": "unknown activation 'x'",
    "made(LocalMixer(kernel_init='he'))": "unknown kernel_init 'he'",
    "made(LocalMixer(patches_per_side=0))": "patches_per_side is 0; expected at least 1",
}
TRY_ALL = """
import sys
import jax.numpy as jnp
from dfa_jax import *
def made(module):
    return from_linen(module, "*", jnp.zeros((2, 8, 8, 1)))
for line in sys.stdin.read().splitlines():
    try:
        eval(line)
        print("accepted")
    except InputError as error:
        print(error)
"""


def test_choices_are_checked_in_python_too():
    """Documented contract: the field, the value, and the nearest choice or all of them, where a
    silent default would have run another experiment. (In a process of its own: the tests' type
    checker would refuse the arguments before the classes can.)"""
    done = subprocess.run(
        [sys.executable, "-c", TRY_ALL],
        input="\n".join(WRONG_CHOICES),
        capture_output=True,
        text=True,
        check=True,
    )
    said = done.stdout.splitlines()
    assert len(said) == len(WRONG_CHOICES)
    for (written, words), message in zip(WRONG_CHOICES.items(), said, strict=True):
        assert words in message, written
