"""Train steps compiled ahead: what is read off a compiled program."""

import dataclasses
import os
import pathlib
import re
import subprocess
import sys

import pytest

import dfa_jax
from dfa_jax.data import ImageData
from dfa_jax.errors import InputError
from dfa_jax.report import pod
from dfa_jax.train import TrainConfig
from dfa_jax.train.program import examples

PROGRAM = """HloModule jit_run, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%body (p: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %x = f32[4,8]{1,0} get-tuple-element(%p), index=1
  %ar = f32[4,8]{1,0} all-reduce(%x), channel_id=1, to_apply=%add
  ROOT %t = (s32[], f32[4,8]) tuple(%i, %ar)
}

ENTRY %main (p: f32[4,8]) -> f32[4,8] {
  %loop = (s32[], f32[4,8]) while(%init), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"12"}}
  %g = bf16[16]{0} all-gather(%h), dimensions={0}
  %s = (f32[2], f32[8]) all-gather-start(%k), dimensions={0}
  %d = f32[8]{0} all-gather-done(%s)
}
"""


def test_traffic_of_a_known_program():
    """By hand: an all-reduce of 128 bytes in a loop of twelve turns; gathers of 32 bytes each, one of
    them asynchronous, whose result is the second half of what it names."""
    assert pod.traffic(PROGRAM) == {"all-gather": (2, 64), "all-reduce": (12, 12 * 128)}


def test_traffic_of_a_loop_of_unknown_length_counts_once():
    """Documented contract: as the loop over steps does."""
    unknown = PROGRAM.replace(', backend_config={"known_trip_count":{"n":"12"}}', "")
    assert pod.traffic(unknown)["all-reduce"] == (1, 128)


@pytest.mark.parametrize(
    "kind", ["all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all"]
)
def test_every_kind_of_traffic_is_counted(kind):
    """By hand: four numbers of four bytes, by each of the operations between devices."""
    program = f"ENTRY %main (p: f32[4]) -> f32[4] {{\n  %x = f32[4]{{0}} {kind}(%p)\n}}\n"
    assert pod.traffic(program) == {kind: (1, 16)}


@pytest.mark.parametrize(
    ("topology", "message"),
    [
        *((name, "expected a chip .v4, v5e, v5p, v6e.") for name in ("v5e", "a100:8", "v5e:16")),
        ("v5e:0x4", "of 0 chips; expected at most the 256 of a v5e pod"),
        ("v5e:1000x1000", "of 1000000 chips"),
        ("v5e:3x7", "here"),  # what libtpu says, or that it is missing
    ],
)
def test_unknown_topologies_are_refused(topology, message):
    """Documented contract: the value and what was expected, with or without libtpu."""
    with pytest.raises(InputError, match=f"'{topology}'.*{message}.*v5e:16x16"):
        pod.slice_devices(topology)


def test_images_that_are_not_here(tmp_path):
    """Documented contract: of a set that is not on this machine the side is enough, or the error says
    how to get it; of a set that nobody has, which there are. Oracle: the shapes of one that is here, but for its number of channels."""
    here = TrainConfig(data=ImageData(image_size=6), batch_size=32)
    away = dataclasses.replace(
        here, data=ImageData("imagenet2012", data_dir=str(tmp_path), image_size=6, stream=True)
    )
    found, known = (examples(pod._dataset(config), 32) for config in (away, here))
    assert found.inputs.shape == (*known.inputs.shape[:3], 3)
    assert (found.inputs.dtype, found.targets) == (known.inputs.dtype, known.targets)
    for change, message in (
        ({"image_size": None}, "imagenet2012.*prepare"),
        ({"name": "imagnet2012"}, "unknown data set 'imagnet2012'; Known: digits"),
    ):
        other = dataclasses.replace(away, data=dataclasses.replace(away.data, **change))
        with pytest.raises(InputError, match=message):
            pod._dataset(other)


WITHOUT_LIBTPU = """
import runpy, sys
sys.modules["libtpu"] = None  # importing it fails, as where it is not installed
sys.argv[1:] = ["quickstart", "--topology", "v5e:4x4"]
runpy.run_path("scripts/compile_for_pod.py", run_name="__main__")
"""


@pytest.mark.slow
def test_without_libtpu_there_is_one_line():
    """Oracle: the shell. Exit code 2, and one line that says what to install."""
    root = pathlib.Path(dfa_jax.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_LIBTPU],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert re.fullmatch(r"compile_for_pod.py: error: .*pip install 'jax\[tpu\]'.*\n", done.stderr)
