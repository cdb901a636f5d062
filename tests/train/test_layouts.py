"""Neither losses nor checkpoints depend on how processes and devices are laid out.

Oracle: one device. Of losses up to the order of sums (see `test_meshes`), of checkpoints bit by bit.
"""

import json
import shutil

import jax
import numpy as np
import pytest

from dfa_jax.train import checkpoint, fit, loop
from tests import helpers
from tests.train import layouts, small, test_meshes
from tests.train.test_resume import spoil, started

MESHES = {  # devices of one process, in the order in which a checkpoint passes through them
    "data": (8, 1, False),
    "fsdp": (8, 1, True),
    "model": (1, 4, False),
    "fsdp x model": (4, 2, True),
}


def begun(rule, folder):
    """A state after a few steps on one device, and its checkpoint."""
    program = small.program(small.config(rule), small.mesh())
    state, _ = loop.run_steps(
        small.state(program),
        small.data(program.mesh),
        small.order(layouts.STEP),
        layouts.STEP,
        program=program,
    )
    with checkpoint.Checkpoints(folder, small.config(rule)) as checkpoints:
        checkpoints.save(state, checkpoint.Progress())
    return state


@pytest.mark.slow
@pytest.mark.parametrize("rule", layouts.RULES)
def test_checkpoints_move_from_mesh_to_mesh(tmp_path, rule):
    """Exact equivalence: every leaf, after every move, is what the first mesh wrote."""
    first, before = begun(rule, tmp_path / "first"), tmp_path / "first"
    for name, (data, model, fsdp) in {**MESHES, "one": (1, 1, False)}.items():
        mesh = small.mesh(data, model, fsdp=fsdp)
        state = layouts.move(before, tmp_path / name, rule, mesh)
        helpers.assert_identical(small.plain(state), small.plain(first))
        kernel = state.params["layer_0"]["Dense_0"]["kernel"]
        assert kernel.sharding.mesh == mesh
        assert kernel.sharding.is_fully_replicated == (model == 1 and not fsdp)
        before = tmp_path / name


@pytest.fixture(scope="module")
def alone():
    """A whole run by one process."""
    return fit(small.config(layouts.RULES[0]), progress=False)


@pytest.fixture(scope="module")
def laid_out(tmp_path_factory):
    """The folder that all layouts have left behind, and the states that they began with."""
    folder = tmp_path_factory.mktemp("layouts")
    states = {rule: begun(rule, folder / "first" / rule) for rule in layouts.RULES}
    shutil.copytree(folder / "first", folder / "cut")
    for rule in layouts.RULES:
        shutil.copytree(folder / "cut" / rule / "3", folder / "cut" / rule / "9")
    run = folder / "run"
    fit(small.config(layouts.RULES[0]), run_dir=run, progress=False)
    (run / "record.json").unlink()
    for checkpoints in (*(folder / "cut").glob("*/3"), run / "checkpoints" / "12"):
        for path in (checkpoints / "state").glob("**/d/*"):
            spoil(path, "half")
    started("tests.train.layouts", folder)
    return folder, states


@pytest.fixture(scope="module")
def losses_of_others(tmp_path_factory):
    """The folder with losses alone, of the cases that CI leaves to the night."""
    folder = tmp_path_factory.mktemp("others")
    started("tests.train.layouts", folder, "others")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("layout", layouts.LAYOUTS)
@pytest.mark.parametrize(("model", "rule"), helpers.at_night(test_meshes.CASES, *test_meshes.IN_CI))
def test_processes_have_the_losses_of_one_device(request, layout, model, rule):
    """The reason is that of `test_meshes`: no rule, and no family of models, may feel them."""
    if (model, rule) in test_meshes.IN_CI:
        folder, _ = request.getfixturevalue("laid_out")
    else:
        folder = request.getfixturevalue("losses_of_others")
    found = np.load(folder / layout / "losses.npz")[f"{model} {rule}"]
    assert len(found) == test_meshes.STEPS
    np.testing.assert_allclose(found, test_meshes.alone(model, rule), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("layout", [*layouts.LAYOUTS, "one process"])
@pytest.mark.parametrize("rule", layouts.RULES)
def test_checkpoints_move_from_layout_to_layout(laid_out, tmp_path, layout, rule):
    """Exact equivalence: one process writes, two read it and write, four read that and write, and one
    reads it again; every leaf is what the first wrote, at every place."""
    folder, states = laid_out
    expected = jax.tree.leaves(small.plain(states[rule]))
    if layout == "one process":
        state = layouts.move(folder / "4x1" / rule, tmp_path, rule, small.mesh(8, fsdp=True))
        found = jax.tree.leaves(small.plain(state))
    else:
        found = list(np.load(folder / layout / rule / "state.npz").values())
    assert len(found) > 20
    helpers.assert_identical(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("rule", layouts.RULES)
def test_what_one_process_cannot_read_is_refused_by_all(laid_out, rule):
    """Documented contract: the same words in each, and none waits for one that has given up."""
    folder, _ = laid_out
    seen = [(folder / f"seen by {own} of {rule}").read_text() for own in range(2)]
    assert seen == ["[3]", "[3]"]
    said = [(folder / f"said by {own} of {rule}").read_text() for own in range(2)]
    reasons = [one.split(" cannot be read ")[1] for one in said]
    assert reasons[0] == reasons[1]
    assert len(said[0].splitlines()) == 1


@pytest.mark.slow
def test_processes_go_on_from_the_newest_good_checkpoint(laid_out, alone):
    """Oracle: the run of one process, up to the order of float32 sums. Two processes set the damaged
    checkpoint aside and take the one before it."""
    run = laid_out[0] / "run"
    assert (run / "damaged" / "12").exists()
    record = json.loads((run / "record.json").read_text())
    assert [point["step"] for point in record["curve"]] == [4, 8, 12]
    for ours, theirs in zip(record["curve"], alone.record.curve, strict=True):
        np.testing.assert_allclose(ours["test_loss"], theirs.test_loss, rtol=1e-5)
