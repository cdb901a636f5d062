"""An example of what the core, and each extra alone, is for; run from a clone's root."""

EXAMPLES = {
    "": """
import jax, optax
from dfa_jax import MLP, RULES, check_isolation, from_linen, init_state, train_step
from dfa_jax.losses import softmax_cross_entropy
from dfa_jax.types import Batch

x = jax.random.normal(jax.random.key(0), (8, 5))
batch = Batch(x, jax.numpy.arange(8) % 3)
model = from_linen(MLP((6,), 3), "layer_0", x)
rule = RULES["direct_feedback_alignment"]()
parts = {"model": model, "rule": rule, "loss_fn": softmax_cross_entropy, "tx": optax.sgd(0.1)}
state = jax.jit(lambda key: init_state(key, batch, **parts))(jax.random.key(0))
step = jax.jit(lambda state: train_step(state, batch, **parts))
state, metrics = step(state)
assert metrics["loss"] > 0
""",
    "train": """
import pathlib, tempfile
from dfa_jax import TrainConfig, fit
from dfa_jax.data import ImageData
from dfa_jax.models import MLP

few = ImageData("digits", num_train=64, num_test=24)
config = TrainConfig(data=few, model=MLP((8,)), batch_size=16, num_epochs=1)
with tempfile.TemporaryDirectory() as folder:
    found = fit(config, run_dir=pathlib.Path(folder) / "run", progress=False)
    assert len(list((pathlib.Path(folder) / "run" / "checkpoints").iterdir())) >= 1
from dfa_jax.train import linear_probe
train, test = few.load().train, few.load().test
assert linear_probe(found.model, found.state.params, train, test, place="layer_0").test_accuracy
""",
    "data": """
from dfa_jax.data import ImageData
from dfa_jax.data.locate import registered
from dfa_jax.data.vocabulary import learn_bpe

assert len(ImageData("digits").load().train.targets) == 1437
assert "mnist" in registered()
assert learn_bpe([b"to be or not to be"], 258).size == 258
import PIL.Image, array_record.python.array_record_data_source
""",
    "theory": """
import jax, numpy as np
from dfa_jax import theory

weights = theory.draw_weights(
    jax.random.key(0), 20, v_teacher=np.ones(2), feedback=np.array([0.9, -1.3])
)
setup = theory.TeacherStudent(learning_rate=0.1, second_learning_rate=0.1)
solved = theory.solve(theory.from_weights(weights), setup, np.array([0.0, 1.0]))
assert theory.generalization_error(solved, "erf").shape == (2,)
""",
    "report": """
import pathlib, shutil, tempfile
from dfa_jax.report import catalogue, publish

with tempfile.TemporaryDirectory() as folder:
    shutil.copytree("results/quickstart", pathlib.Path(folder) / "quickstart")
    said = publish.publish(catalogue.load("quickstart"), pathlib.Path(folder))
assert "backprop" in said
""",
}
