"""Does the suite bite? Sabotages one line of a copy at a time; the tests must notice every time.

`python scripts/mutate.py [NAME ...]` prints one line a sabotage, with the test that noticed, and
exits with 1 if any survives.
"""

import os
import pathlib
import shlex
import shutil
import subprocess
import sys
import tempfile
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[1]
COPIED = ("dfa_jax", "tests", "scripts", "configs", "docs", "pyproject.toml", "README.md")


class Sabotage(NamedTuple):
    """One line to change, and the tests that ought to notice.

    Attributes:
        file: under `dfa_jax`.
        line: that it holds once.
        instead: what takes its place.
        tests: what pytest is given, quoted as for a shell; slow ones need their `-m`.
    """

    file: str
    line: str
    instead: str
    tests: str


SABOTAGES = {
    "fill a part of a scalar up with copies": Sabotage(
        "train/evaluation.py",
        "if loss.extra is not None or loss.values.shape[:1] != (length,):",
        "if loss.values.shape[:1] not in ((), (length,)):",
        "tests/train/test_evaluation.py",
    ),
    "a test loss of parts that count alike": Sabotage(
        "train/evaluation.py",
        "if loss.weights is not None else len(counts)",
        "if loss.weights is not None else 1",
        "tests/train/test_evaluation.py",
    ),
    "masked places count in the test loss": Sabotage(
        "train/evaluation.py",
        "(weights * rows).sum(1), weights.sum(1)",
        "rows.sum(1), jnp.ones_like(rows).sum(1)",
        "tests/train/test_own.py -k against_numpy",
    ),
    "metrics of the training mode": Sabotage(
        "train/evaluation.py",
        "program.model.apply(params, batch.inputs, state=model_state, key=key)",
        "program.model.bind(model_state, key=key).run(params, batch.inputs, ())[0]",
        "tests/train/test_own.py -k against_numpy",
    ),
    "arrays known by their shapes": Sabotage(
        "data/arrays.py",
        "found.update(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data)",
        "pass",
        "tests/data/test_array_data.py tests/train/test_own.py",
    ),
    "search on the test arrays": Sabotage(
        "report/tuning.py",
        "return data.with_validation(number)",
        "return data",
        "tests/report/test_own.py",
    ),
    "a search where there are no labels takes errors": Sabotage(
        "report/series.py",
        "return loss if accuracy is None else 100 * (1 - accuracy)",
        "return 100 * (1 - (accuracy or 0))",
        "tests/report/test_own.py",
    ),
    "losses of one name are one": Sabotage(
        "train/loop.py",
        "if getattr(first, name) != getattr(same, name)",
        "if False",
        "tests/train/test_own.py -k one_name",
    ),
    "an optimiser known by its name": Sabotage(
        "train/described.py",
        "return _with_digest(place(value.update).partition(_INNER)[0], _spelt(value))",
        "return place(value.update).partition(_INNER)[0]",
        "dfa_jax/train/described.py",
    ),
    "the first loss is the rate's fault": Sabotage(
        "train/run.py",
        'if not begin and not math.isfinite(noted["loss"][0]):',
        "if False:",
        "tests/train/test_own.py -k first_loss",
    ),
    "a first batch that weighs nothing": Sabotage(
        "train/run.py",
        "if self.program.is_weighted:",
        "if False:",
        "tests/train/test_own.py -k first_loss",
    ),
    "the optimiser is tried in the run": Sabotage(
        "train/given.py",
        "    if isinstance(optimizer, Optimizer):\n        return draw()\n",
        "    return draw()\n",
        "tests/train/test_own.py -k cannot_run",
    ),
    "masked as if not": Sabotage(
        "autodiff/loss.py",
        "    weight = total_weight(loss)\n    return (loss.weights",
        "    weight = jnp.asarray(loss.values.size)\n    return (loss.weights",
        '"tests/rules/test_unbiased.py::test_the_mean_of_many_draws_is_jax_grads'
        '[recurrent, masked]" -m "not nightly"',
    ),
    "the state of the step before": Sabotage(
        "autodiff/site_gradients.py",
        "return GradEstimate(value, passed.outputs, {}, {}, passed.state, weight), error, shares",
        "return GradEstimate(value, passed.outputs, {}, {}, model.state, weight), error, shares",
        "tests/rules/test_batch_statistics.py -k move_once",
    ),
    "statistics of a second pass": Sabotage(
        "rules/activity_forward_gradient.py",
        "found = deliver(model, objective, params, batch, sent, at=at)",
        "model = model.bind(objective(model, params, batch, {}).state, key=model.key)\n"
        "        found = deliver(model, objective, params, batch, sent, at=at)",
        "tests/rules/test_batch_statistics.py -k move_once",
    ),
    "the true transpose of any map": Sabotage(
        "autodiff/evaluation.py",
        "terms.append(apply(x_dot, matrix))",
        "terms.append(apply(x_dot, weight))",
        "tests/autodiff/test_transposes.py -k written_out",
    ),
    "feedback past what is made of it": Sabotage(
        "autodiff/evaluation.py",
        "found = run(*(self.seconds.get(atom, self.values[atom]) for atom in reads))",
        "found = run(*(self.values[atom] for atom in reads))",
        "tests/autodiff/test_transposes.py -k written_out",
    ),
    "signs of feedback for those of the kernel": Sabotage(
        "autodiff/evaluation.py",
        "matrix = self.substitute(weight, matrix, met.fan_in)",
        "matrix = self.substitute(matrix, matrix, met.fan_in)",
        "tests/autodiff/test_transposes.py -k signs",
    ),
    "a branch without feedback": Sabotage(
        "autodiff/evaluation.py",
        "(value if second is None else second) if is_fed else None",
        "value if is_fed else None",
        "tests/autodiff/test_transposes.py -k unrolls",
    ),
    "a carry is what it begins as": Sabotage(
        "models/provenance.py",
        "if after == carry:",
        "if True:",
        "tests/autodiff/test_transposes.py -k written_out",
    ),
    "layers hidden in a program": Sabotage(
        "models/provenance.py",
        "passes or _hides_layers(equation, kinds)",
        "passes",
        "tests/autodiff/test_transposes.py -k looked_into",
    ),
    "a scale that nobody names": Sabotage(
        "models/provenance.py",
        '_ENTRYWISE = ("mul", "div",',
        '_ENTRYWISE = ("mul",',
        "tests/autodiff/test_transposes.py -k has_a_name",
    ),
    "reverse B": Sabotage(
        "autodiff/feedback.py",
        "return jnp.tensordot(error.astype(feedback.dtype), feedback, axes=1)",
        "return jnp.tensordot(error.astype(feedback.dtype), feedback[::-1], axes=1)",
        "tests/autodiff/test_feedback.py -k einsum",
    ),
    "flip the sign of e": Sabotage(
        "autodiff/site_gradients.py",
        "send(model.read_error(error), activities",
        "send(-model.read_error(error), activities",
        "tests/rules/test_direct_feedback_alignment.py -k single_precision",
    ),
    "drop the activation's derivative": Sabotage(
        "models/mlp.py",
        "return ACTIVATIONS[self.activation](dense(x))",
        "a = dense(x)\n"
        "        return a + jax.lax.stop_gradient(ACTIVATIONS[self.activation](a) - a)",
        "tests/rules/test_direct_feedback_alignment.py -k single_precision",
    ),
    "do not cut": Sabotage(
        "autodiff/sites.py",
        "leaves[found[0]] = jax.lax.stop_gradient(h)",
        "leaves[found[0]] = h",
        "tests/autodiff/test_absence.py -k crosses_a_cut",
    ),
    "decay B": Sabotage(
        "rules/base.py",
        "batch, send, **how)\n        return found._replace(rule_state=rule_state)",
        "batch, send, **how)\n        return found._replace("
        "rule_state=jax.tree.map(lambda B: 0.9999 * B, rule_state))",
        "tests/conformance/test_training.py -k survives_training",
    ),
    "redraw B on resume": Sabotage(
        "train/run.py",
        "self.state, progress = self.files.checkpoints.restore(like, step)",
        "self.state, progress = self.files.checkpoints.restore(like, step)\n"
        "        redrawn = init(jax.random.key(1), None, self._example()).rule_state\n"
        "        self.state = self.state._replace(rule_state=redrawn)",
        "tests/train/test_interrupt.py::test_a_stop_between_evaluations_loses_nothing[3]",
    ),
    "sum the loss": Sabotage(
        "autodiff/site_gradients.py",
        "return loss.mean(found), (",
        "return found.values.sum(), (",
        "tests/autodiff/test_sites.py -k true_errors",
    ),
    "the same B at every site": Sabotage(
        "rules/draw.py",
        "    key = named_key(key, site)\n    return jax.random.split",
        "    return jax.random.split",
        "tests/rules/test_draw.py::test_matrices_are_independent",
    ),
    "the first layer's B for a whole stack": Sabotage(
        "autodiff/feedback.py",
        "return jax.vmap(lambda layer: project(error, layer, num_stack - 1))(feedback)",
        "return jax.vmap(lambda layer: project(error, feedback[0], num_stack - 1))(feedback)",
        "tests/autodiff/test_feedback.py -k einsum",
    ),
    "examples told apart without a look": Sabotage(
        "autodiff/loss.py",
        "return len(front) if leading(1) == front and _is_double(leading, front) else 0",
        "return len(front)",
        "tests/autodiff/test_loss.py -k told_apart",
    ),
    "any axis of the batch's size is that of examples": Sabotage(
        "autodiff/loss.py",
        "return leading(2) == (2 * front[0], *front[1:])",
        "return True",
        "tests/autodiff/test_loss.py -k told_apart",
    ),
    "a loss that couples examples, told apart": Sabotage(
        "autodiff/loss.py",
        " or couples_examples(loss_fn):",
        ":",
        "tests/autodiff/test_loss.py -k told_apart",
    ),
    "weights along the last axes": Sabotage(
        "autodiff/loss.py",
        "weights.reshape(*weights.shape, *(1,) * behind) if behind > 0 else weights",
        "weights.reshape(*(1,) * behind, *weights.shape) if behind > 0 else weights",
        "tests/autodiff/test_loss.py -k scalar_of",
    ),
    "padding trains": Sabotage(
        "autodiff/loss.py",
        "rows / jnp.where(total == 0, 1, total)",
        "jnp.full(front, 1 / number)",
        "tests/autodiff/test_loss.py -k shares",
    ),
    "losses of scalars are averaged over the batch": Sabotage(
        "autodiff/loss.py",
        "return values.sum(inner) / values.size",
        "return values.sum(inner) / len(jnp.atleast_1d(values))",
        "tests/autodiff/test_loss.py -k scalar_of",
    ),
    "the state stays": Sabotage(
        "autodiff/sites.py",
        "if name in variables\n",
        "if False\n",
        "tests/rules/test_functional.py -k moved_once",
    ),
    "evaluation as in training": Sabotage(
        "models/base.py",
        "train: bool = False,\n    ) -> Any:",
        "train: bool = True,\n    ) -> Any:",
        "tests/models/test_calls.py -k mode_is_set",
    ),
    "the mode is left as the module has it": Sabotage(
        "models/linen.py",
        "return module(inputs, **modes)",
        "return module(inputs)",
        "tests/models/test_calls.py -k mode_is_set",
    ),
    "an inner call of a shared scope is the site": Sabotage(
        "autodiff/sites.py",
        "if not orders or module.path in self.within:",
        "if not orders:",
        '"tests/conformance/test_any_model.py" -m "not nightly" -k "low and backprop"',
    ),
    "all arrays of a place are the site": Sabotage(
        "autodiff/sites.py",
        'and wanted in ("", leaf_name)',
        "",
        "tests/autodiff/test_refusals.py -k several_outputs",
    ),
    "sown losses are forgotten": Sabotage(
        "autodiff/objective.py",
        "for term in (loss.extra, passed.sown) if",
        "for term in (loss.extra,) if",
        '"tests/conformance/test_any_model.py" -m "not nightly" -k "experts and activity_forward"',
    ),
    "a position's noise is weighed by its own loss": Sabotage(
        "models/linen.py",
        "independent = (0 if coupled else 1) if",
        "independent = (0 if coupled else axes) if",
        '"tests/conformance/test_any_model.py" -m "not nightly" -k "masked and activity_forward"',
    ),
    "local losses leave out what belongs to no example": Sabotage(
        "rules/local_losses.py",
        "return own if found.extra is None else own + found.extra",
        "return own",
        '"tests/conformance/test_any_model.py" -m "not nightly" -k "local_losses and more"',
    ),
    "the norm of a weight in place of its signs": Sabotage(
        "rules/fixed_random_sign.py",
        "jnp.abs(feedback) * jnp.sign(weight)",
        "jnp.abs(feedback)",
        "tests/rules/test_sign_symmetry.py",
    ),
    "kernels that inputs modulate are taken for activations": Sabotage(
        "models/provenance.py",
        "elif _is_modulated(given):",
        "elif False:",
        "tests/rules/test_from_outside.py -k modulate",
    ),
    "noise is shared under one slope": Sabotage(
        "rules/activity_forward_gradient.py",
        'sharing = self.sharing if plain.example_axes and SHARED not in plain.terms else "none"',
        "sharing = self.sharing",
        "tests/rules/test_from_outside.py -k not_shared",
    ),
    "every first axis is that of the examples": Sabotage(
        "models/survey.py",
        "Site(path, side, carried[:-1], leaf, self._has_examples(place, leaf))",
        "Site(path, side, carried[:-1], leaf)",
        "tests/rules/test_from_outside.py -k without_examples",
    ),
    "feedback alignment by the weights": Sabotage(
        "autodiff/objective.py",
        "found = with_feedback(*given, matrices, substitute)",
        "found = losses(params, batch, perturbations)",
        "tests/rules/test_feedback_alignment.py -k numpy",
    ),
    "no decay of Kolen-Pollack's feedback": Sabotage(
        "rules/kolen_pollack.py",
        "outer + self.decay * learned[one.name]",
        "outer",
        "tests/rules/test_kolen_pollack.py -k shrinks",
    ),
    "magnitudes without signs": Sabotage(
        "rules/uniform_sign.py",
        "jnp.sign(weight)",
        "jnp.ones_like(weight)",
        "tests/rules/test_sign_symmetry.py",
    ),
    "last columns of the shared B": Sabotage(
        "rules/draw.py",
        "return rule_state[SHARED][:, :width]",
        "return rule_state[SHARED][:, -width:]",
        "tests/rules/test_direct_feedback_alignment.py -k first_columns",
    ),
    "threshold the mean error": Sabotage(
        "rules/direct_feedback_alignment.py",
        "jnp.abs(error) > self.ternary_threshold * shares",
        "jnp.abs(error) > self.ternary_threshold",
        "tests/rules/test_direct_feedback_alignment.py -k does_not_depend",
    ),
    "no gradient of the head under last_hidden": Sabotage(
        "autodiff/site_gradients.py",
        "tree.add(head_grads, body_grads)",
        "body_grads",
        "tests/autodiff/test_sites.py -k true_errors",
    ),
    "every epoch in the same order": Sabotage(
        "data/base.py",
        "jax.random.fold_in(key, epoch)",
        "jax.random.fold_in(key, 0)",
        "tests/data/test_epoch_shuffle.py -k another_permutation",
    ),
    "one step too few a dispatch": Sabotage(
        "train/compiled.py",
        "jax.lax.fori_loop(0, num_steps, loop_body(one), (state, nothing))",
        "jax.lax.fori_loop(1, num_steps, loop_body(one), (state, nothing))",
        "tests/train/test_step.py -k that_many_train_steps",
    ),
    "decay the biases": Sabotage(
        "optim.py",
        '("kernel", "embedding", "feedback")',
        '("kernel", "bias")',
        "tests/test_optim.py",
    ),
    "ignore the second layer's sign in theory": Sabotage(
        "theory/order_parameters.py",
        "return jnp.concatenate([-op.v, op.v_teacher], -1)",
        "return jnp.concatenate([op.v, op.v_teacher], -1)",
        "tests/theory/test_ode.py",
    ),
    "drop the noise of finite steps": Sabotage(
        "theory/ode.py",
        "eta**2 * jnp.outer(F, F) * spread",
        "0.0 * jnp.outer(F, F) * spread",
        "tests/theory/test_ode.py",
    ),
    "lengths of inputs by their mean": Sabotage(
        "theory/simulation.py",
        "return degrees * (1 - a + a**0.5 * normal) ** 3",
        "return degrees + 0 * normal",
        "tests/theory/test_simulation.py",
    ),
    "read the wrong layer's feedback in theory": Sabotage(
        "theory/deep_linear.py",
        "sent = [errors @ F.T for F in feedback] + [errors]",
        "sent = [errors @ F.T for F in reversed(feedback)] + [errors]",
        "tests/theory/test_deep_linear.py",
    ),
    "the same noise at every site": Sabotage(
        "autodiff/forward.py",
        "key = named_key(key, name)",
        "named_key(key, name)",
        "tests/autodiff/test_forward.py",
    ),
    "a replica's full derivative": Sabotage(
        "autodiff/replicate.py",
        'own = jnp.einsum("...pgc,...gc->...pg", features_dot, slope) / features.shape[-3]',
        'own = jnp.einsum("...pgc,...gc->...pg", features_dot, slope)',
        "tests/autodiff/test_replicate.py",
    ),
    "a block hears of its loss twice": Sabotage(
        "rules/local_losses.py",
        "block: jax.lax.stop_gradient(activities[block]) if block in cut else activities[block]",
        "block: activities[block]",
        '"tests/rules/test_forward_gradients.py::test_the_mean_of_many_draws_is_the_true_gradient'
        '[local, activities]" -m "not nightly"',
    ),
    "guess the heads too": Sabotage(
        "rules/weight_forward_gradient.py",
        "return path[0] == HEADS or path[:-1] in model.readout",
        "return path[:-1] in model.readout",
        "tests/rules/test_local_losses.py -k heads_and_readout",
    ),
    "guesses as long as they come": Sabotage(
        "rules/gradient_guess.py",
        'weight = slope if self.guess == "random" else slope / square\n            lead',
        "weight = slope\n            lead",
        "tests/rules/test_gradient_guess.py",
    ),
    "no cut behind a block": Sabotage(
        "rules/local_losses.py",
        'action = "cut" if self.rule.greedy else "record"',
        'action = "record"',
        "tests/rules/test_local_losses.py -k written_out",
    ),
    "a normalisation too few": Sabotage(
        "models/local_mixer.py",
        "return layer_norm(mixed).reshape(*x.shape[:2], self.num_groups, -1)",
        "return mixed.reshape(*x.shape[:2], self.num_groups, -1)",
        "tests/models/test_local_mixer.py -k forward_pass",
    ),
    "tune on the test set": Sabotage(
        "report/tuning.py",
        "data, num_validation=number, num_test=None",
        "data, num_test=None",
        "tests/report/test_tuning.py -k no_test_example",
    ),
    "slow every layer like the readout": Sabotage(
        "optim.py",
        "tuple(part.key for part in path[:-1]) in modules",
        "True",
        "tests/test_optim.py -k readouts_factor",
    ),
    "a view compared with itself": Sabotage(
        "losses.py",
        "partner = v.reshape(rows // 2, 2, -1)[:, ::-1].reshape(v.shape)",
        "partner = v",
        "tests/test_nt_xent.py",
    ),
    "the comparison is not stopped": Sabotage(
        "losses.py",
        "v = jax.lax.stop_gradient(u) if self.stop_comparison else u",
        "v = u",
        "tests/test_nt_xent.py tests/train/test_contrastive.py",
    ),
    "measure sites on single images": Sabotage(
        "train/compiled.py",
        "    if program.views:\n        batch = program.views(key, batch)\n",
        "",
        "tests/train/test_contrastive.py -k on_views",
    ),
    "the readout moves the network": Sabotage(
        "train/step.py",
        'found["accuracy"] = seen["accuracy"]\n',
        'found["accuracy"] = seen["accuracy"]\n'
        '        leak = 1e-6 * classifier["kernel"][0, 0]\n'
        "        params = jax.tree.map(lambda p: p + leak, params)\n",
        "tests/train/test_contrastive.py -k leaves_the_network",
    ),
    "the readout's step as long as its features are": Sabotage(
        "train/readout.py",
        "rate = self.learning_rate / (1 + jnp.square(seen).sum(-1).mean())",
        "rate = self.learning_rate",
        "tests/train/test_probe.py",
    ),
    "the next image of a stream": Sabotage(
        "data/image_stream.py",
        "stored: list[int] = self.order[indices].tolist()",
        "stored: list[int] = self.order[indices - 1].tolist()",
        "tests/data/test_stream.py",
    ),
    "a branch at the full rate": Sabotage(
        "train/run.py",
        "factors = np.maximum(left, 0).astype(np.float32)",
        "factors = np.ones(len(order), np.float32)",
        "tests/train/test_together.py",
    ),
    "train in one order together": Sabotage(
        "train/loop.py",
        "np.stack([run.source.indices(begin, number) for run in runs], 1)",
        "np.stack([runs[0].source.indices(begin, number) for run in runs], 1)",
        "tests/train/test_together.py",
    ),
    "everyone from his own checkpoint": Sabotage(
        "train/run.py",
        "self.files.checkpoints.restore(like, step)",
        "self.files.checkpoints.restore(like, self.kept[0])",
        "tests/train/test_together.py -k bit_for_bit",
    ),
    "clip with what is frozen": Sabotage(
        "optim.py",
        "optax.masked(tx, lambda params: _frozen(params, self.frozen, moves=True))",
        "tx",
        "tests/test_optim.py",
    ),
    "a target that is its input": Sabotage(
        "data/windows.py",
        "found[:, 1:].astype(np.int32))",
        "found[:, :-1].astype(np.int32))",
        "tests/data/test_text.py",
    ),
    "no look at the checksum": Sabotage(
        "data/tokens.py",
        "if found != (expected",
        "if False and (expected",
        "tests/data/test_tokens.py",
    ),
    "a vocabulary of the test text": Sabotage(
        "data/text.py",
        "learn_bpe(source.train(),",
        "learn_bpe(source.test(),",
        "tests/data/test_text.py",
    ),
    "a chain that starts anywhere": Sabotage(
        "data/markov.py",
        "number, p=self.stationary)",
        "number)",
        "tests/data/test_markov.py",
    ),
    "minimise the mean": Sabotage(
        "scaling/huber.py",
        "done = (solved & (damping <= 1) & (predicted <= TOLERANCE * value))",
        "done = (solved & (damping <= 1) & (predicted <= 1e-7))",
        "tests/scaling/test_fit.py tests/scaling/test_huber.py",
    ),
    "forget the floor": Sabotage(
        "scaling/laws.py",
        "terms=lambda logs: [[1, 0, 0], [0, 1, -logs[0]]],",
        "terms=lambda logs: [[0, 0, 0], [0, 1, -logs[0]]],",
        "tests/scaling/test_laws.py tests/scaling/test_fit.py",
    ),
    "resample points": Sabotage(
        "scaling/fit.py",
        "weights = jax.random.exponential(key, (num_samples, int(curves.max()) + 1))\n"
        "    samples = refit(fit, np.asarray(weights)[:, curves])",
        "weights = jax.random.exponential(key, (num_samples, len(curves)))\n"
        "    samples = refit(fit, np.asarray(weights))",
        "tests/scaling/test_fit.py -k share_its_weight",
    ),
    "swap the exponents of the best size": Sabotage(
        "scaling/fit.py",
        "num_params = np.exp(log_G + beta / (alpha + beta) * log_product)",
        "num_params = np.exp(log_G + alpha / (alpha + beta) * log_product)",
        "tests/scaling/test_fit.py -k compute_optimal_is",
    ),
    "scores point by point": Sabotage(
        "scaling/covariance.py",
        "    scores = np.zeros((curves.max() + 1, slopes.shape[1]))",
        "    curves = np.arange(len(curves))\n"
        "    scores = np.zeros((curves.max() + 1, slopes.shape[1]))",
        "tests/scaling/test_fit.py -k sandwich",
    ),
    "read minima off the ladder's edge": Sabotage(
        "scaling/frontier.py",
        "if best == len(here) - 1:",
        "if best == len(here):",
        "tests/scaling/test_frontier.py -k edges",
    ),
    "extrapolate curves": Sabotage(
        "scaling/frontier.py",
        "np.where((budgets >= flops[0]) & (budgets <= flops[-1]), np.log(budgets), np.nan)",
        "np.log(np.clip(budgets, flops[0], flops[-1]))",
        "tests/scaling/test_frontier.py -k nothing_is_extrapolated",
    ),
    "the luckiest seed wins": Sabotage(
        "scaling/frontier.py",
        "means = np.stack([curve.log_losses.mean(0) for curve in curves])",
        "means = np.stack([curve.log_losses.min(0) for curve in curves])",
        "tests/scaling/test_frontier.py -k lucky",
    ),
    "a discount the wrong way round": Sabotage(
        "scaling/verdict.py",
        "found = {num_params[size]: theirs[size] / ours[size]",
        "found = {num_params[size]: ours[size] / theirs[size]",
        "tests/scaling/test_verdict.py -k discounts_are",
    ),
    "extrapolate without saying so": Sabotage(
        "scaling/verdict.py",
        "float(pays[i]), not measured)",
        "float(pays[i]), False)",
        "tests/scaling/test_verdict.py -k is_marked",
    ),
    "settle for the likeliest outcome": Sabotage(
        "scaling/verdict.py",
        "settled = fractions[likeliest] >= CONFIDENCE",
        "settled = fractions[likeliest] > 0",
        "tests/scaling/test_verdict.py -k undecided",
    ),
    "charge attention half": Sabotage(
        "scaling/flops.py",
        "return Flops(parts, batch * time)",
        "return Flops({at: n // (1 + (at[0].endswith('scores'))) for at, n in parts.items()},"
        " batch * time)",
        "tests/scaling/test_flops.py -k six_per_weight",
    ),
    "take a job without its lock": Sabotage(
        "report/sweep.py",
        "own.acquire(blocking=False)\n            stack.callback(own.release)",
        "pass",
        "tests/report/test_sweep.py -k other_hands",
    ),
    "a killed job starts again": Sabotage(
        "report/sweep.py",
        "            resume=True,\n",
        "            overwrite=True,\n",
        "tests/report/test_sweep.py -k stopped_job",
    ),
    "stop at the first rate": Sabotage(
        "report/tuning.py",
        "dict.fromkeys([0, 1, -1, best + 1, best - 1])",
        "dict.fromkeys([0, 1, -1])",
        "tests/report/test_tuning.py -k inside_of_what",
    ),
    "take a damaged checkpoint": Sabotage(
        "train/checkpoint.py",
        "if not np.array_equal(found.digest, digest(found.state)):",
        "if False:",
        "tests/train/test_resume.py::test_newest_good_checkpoint_is_taken[altered]",
    ),
    "take another run's checkpoint": Sabotage(
        "train/checkpoint.py",
        "        if found.other:\n",
        "        if False:\n",
        "tests/train/test_resume.py::test_newest_good_checkpoint_is_taken[foreign]",
    ),
    "go on from the oldest checkpoint": Sabotage(
        "train/loop.py",
        "step = max(shared)",
        "step = min(shared)",
        "tests/train/test_resume.py -k finished_run",
    ),
    "stop without saving": Sabotage(
        "train/loop.py",
        "    for run in runs:\n        if not run.replaces:\n            run.save()\n    said",
        "    said",
        "tests/train/test_interrupt.py::test_a_stop_between_evaluations_loses_nothing[3]",
    ),
    "do not hear SIGTERM": Sabotage(
        "train/interrupt.py",
        "return bool(_received)",
        "return signal.SIGINT in _received",
        "tests/train/test_interrupt.py::test_a_stop_between_evaluations_loses_nothing[3]",
    ),
    "every process writes records": Sabotage(
        "train/run.py",
        "return hosts.from_first(attempt)",
        "return attempt()",
        'tests/train/test_hosts.py::test_processes_do_not_matter -m "not nightly"',
    ),
    "processes may disagree": Sabotage(
        "train/hosts.py",
        "    if differ.size:",
        "    if False:",
        'tests/train/test_hosts.py -k disagree -m "not nightly"',
    ),
    "fsdp splits nothing": Sabotage(
        "train/sharding.py",
        "_spec(mesh, leaf, fsdp=True)",
        "_spec(mesh, leaf, fsdp=False)",
        "tests/train/test_loop.py -k fsdp",
    ),
    "gather nothing": Sabotage(
        "train/sharding.py",
        'if "fsdp" not in mesh.shape:',
        "if mesh.shape:",
        "tests/train/test_loop.py -k fsdp",
    ),
    "one kind of traffic goes unseen": Sabotage(
        "report/pod.py",
        '"|".join(checks.COLLECTIVES)',
        '"|".join(checks.COLLECTIVES[:-1])',
        "tests/report/test_pod.py",
    ),
    "traffic of one turn of a loop": Sabotage(
        "report/pod.py",
        "turns = times * int(trips[1]) if trips else times",
        "turns = times",
        "tests/report/test_pod.py",
    ),
    "draw other feedback than is stored": Sabotage(
        "rules/draw.py",
        "keys = [_layer_keys(key, site, shapes[site].stack) for site in names]",
        'keys = [_layer_keys(key, f"{site}/", shapes[site].stack) for site in names]',
        "tests/rules/test_draw.py -k stored_one",
    ),
    "count examples without an error": Sabotage(
        "metrics.py", "& (jnp.abs(delta).max(-1) > 0)", "", "tests/test_metrics.py"
    ),
    "the first layer's error from the last": Sabotage(
        "autodiff/layers.py",
        'last = 0 if options["reverse"] else -1',
        "last = -1",
        "tests/autodiff/test_layers.py::test_at_once_is_one_by_one[macro]",
    ),
    "blocks that wait at once": Sabotage(
        "autodiff/layers.py",
        "return not any(atom is carry for atom in read for carry in carries)",
        "return True",
        "tests/autodiff/test_layers.py::test_no_stack_of_cut_blocks",
    ),
    "layers split over nothing": Sabotage(
        "autodiff/layers.py",
        "if LAYER_AXIS not in mesh.axis_names:",
        "if True:",
        "tests/autodiff/test_layers.py::test_collectives_over_a_layer_axis",
    ),
    "add parts up": Sabotage(
        "train/step.py",
        "(a / jnp.where(w == 0, 1, w)).astype(a.dtype), value)",
        "a, value)",
        "tests/train/test_step.py -k in_parts_is",
    ),
    "one noise for all parts": Sabotage(
        "train/step.py",
        "estimate(jax.random.fold_in(key, part[0]), carry, part[1])",
        "estimate(key, carry, part[1])",
        "tests/train/test_step.py -k parts_draw",
    ),
    "another mesh is another run": Sabotage(
        "train/config.py",
        'PLACEMENT = ("fsdp", "model_axis", "layer_axis")',
        "PLACEMENT = ()",
        "tests/train/test_directory.py -k another_mesh",
    ),
    "a report beside its twin": Sabotage(
        "report/pod_table.py",
        "others = [one for one in records.read_lines(path, parse) if one.key != report.key]",
        "others = records.read_lines(path, parse)",
        "tests/report/test_pod_table.py -k takes_the_place",
    ),
    "parts larger than allowed": Sabotage(
        "train/program.py",
        "if own % parts == 0 and own // parts <= most)",
        "if own % parts == 0)",
        "tests/train/test_step.py -k how_many",
    ),
    "a layer axis for any rule": Sabotage(
        "train/program.py",
        'if not isinstance(config.rule, SiteRule) or config.rule.order != "layer_parallel":',
        "if False:",
        "tests/train/test_spread.py -k refusals",
    ),
    "gather other parameters": Sabotage(
        "train/sharding.py",
        "return jax.lax.with_sharding_constraint(tree, shardings)",
        "return jax.lax.with_sharding_constraint("
        "jax.tree.map(lambda a: 1.01 * a, tree), shardings)",
        'tests/train/test_layouts.py -k losses_of -m "not nightly"',
    ),
    "restore a little more": Sabotage(
        "train/checkpoint.py",
        "return found.state, found.progress",
        "params = jax.tree.map(lambda a: 1.0001 * a, found.state.params)\n"
        "        return found.state._replace(params=params), found.progress",
        'tests/train/test_layouts.py -k layout_to_layout -m "not nightly"',
    ),
    "restore anywhere": Sabotage(
        "train/sharding.py",
        "return NamedSharding(mesh, PartitionSpec())",
        "return jax.sharding.SingleDeviceSharding(mesh.devices.flat[0])",
        'tests/train/test_layouts.py -k mesh_to_mesh -m "not nightly"',
    ),
    "list checkpoints alone": Sabotage(
        "train/checkpoint.py",
        "single_host_load_and_broadcast=True",
        "single_host_load_and_broadcast=False",
        'tests/train/test_layouts.py -k refused_by_all -m "not nightly"',
    ),
    "take the mesh for the run": Sabotage(
        "train/config.py",
        'PLACEMENT = ("fsdp", "model_axis", "layer_axis")',
        "PLACEMENT = ()",
        'tests/train/test_resume.py -k under_another_mesh -m "not nightly"',
    ),
    "do not hear a signal": Sabotage(
        "train/interrupt.py",
        "return bool(_received)",
        "return False",
        'tests/train/test_interrupt.py -k asked_to_stop -m "not nightly"',
    ),
    "open a run twice": Sabotage(
        "train/directory.py",
        "self._lock.acquire(blocking=False)",
        "pass",
        "tests/train/test_directory.py -k open_in_one_process",
    ),
    "do not ring": Sabotage(
        "train/alarm.py",
        'client.key_value_set(_KEY, f"{own}: {reason}")',
        "pass",
        'tests/train/test_hosts.py -k fails_alone -m "not nightly"',
    ),
    "forget the rate": Sabotage(
        "report/sweep.py",
        "config = one.config if rate is None else tuning.at_rate(one.config, rate)",
        "config = one.config",
        'tests/report/test_sweep.py -k are_one_worker -m "not nightly"',
    ),
    "begin a stopped run again": Sabotage(
        "report/run.py",
        "again = bool(overwrite and directory.latest_step() and ",
        "again = bool(directory.latest_step() and not ",
        "tests/report/test_run.py -k goes_on_from_its_checkpoint",
    ),
    "go on from no checkpoint": Sabotage(
        "report/run.py",
        "    directory.clear_unbegun()\n",
        "",
        "tests/report/test_run.py -k before_its_first_checkpoint",
    ),
    "keep a run of another configuration": Sabotage(
        "report/run.py",
        "return bool(directory.changes(config))",
        "return False",
        "tests/report/test_run.py -k unfinished_run_of_another",
    ),
    "do not close a run": Sabotage(
        "train/directory.py",
        "            self._lock.release()\n\n    def _settle",
        "            pass\n\n    def _settle",
        "tests/train/test_directory.py -k closed_run_can_be_opened",
    ),
    "let the old run go at once": Sabotage(
        "train/directory.py",
        "                aside.set_aside(path)\n            # Written",
        "                aside.set_aside(path)\n"
        "                aside.drop(path)\n            # Written",
        "tests/train/test_aside.py -k old_run_is_back",
    ),
    "set aside in place": Sabotage(
        "train/aside.py",
        "        (path / _MOVING).mkdir()\n"
        "        _move(old, path / _MOVING)\n"
        "        (path / _MOVING).rename(path / _OLD)\n",
        "        (path / _OLD).mkdir()\n        _move(old, path / _OLD)\n",
        "tests/train/test_aside.py -k kill_at_any_moment",
    ),
    "bring an old run back over a new one": Sabotage(
        "train/aside.py",
        "if (path / _OLD).exists() and can_go_on(path):",
        "if False:",
        "tests/train/test_aside.py -k mended_at_the_next_start",
    ),
    "drop an old run for one that cannot go on": Sabotage(
        "train/aside.py",
        "return is_evaluated and any(",
        "return is_evaluated or any(",
        "tests/train/test_aside.py -k mended_at_the_next_start",
    ),
    "append without the lock": Sabotage(
        "train/records.py",
        "    with edit(path) as file:\n        file.append(record)",
        "    Editor(path).append(record)",
        "tests/train/test_records.py -k is_writing_is_not_cut_off",
    ),
    "gather without the lock": Sabotage(
        "report/gathering.py",
        "    with records.edit(path) as file:\n"
        "        held = records.read_runs(path)\n        file",
        "    with contextlib.nullcontext(records.Editor(path)) as file:\n"
        "        held = records.read_runs(path)\n        file",
        "tests/report/test_at_once.py -k gathering_waits",
    ),
    "put a run on record twice": Sabotage(
        "report/run.py",
        "if (held := on_record(path, record.variant, config)) is None:",
        "if (held := None) is None:",
        "tests/report/test_at_once.py -k did_meanwhile_is_done",
    ),
    "do what is done": Sabotage(
        "report/run.py",
        "if one not in plan.missing(recipe, held):",
        "if False:",
        "tests/report/test_at_once.py -k did_meanwhile_is_done",
    ),
    "say all that Orbax says": Sabotage(
        "train/checkpoint.py",
        "one.disabled = True",
        "pass",
        'tests/train/test_hosts.py -k fails_alone -m "not nightly"',
    ),
    "take images of any name": Sabotage(
        "report/pod.py",
        "except NotPreparedError:",
        "except InputError:",
        "tests/report/test_pod.py -k images_that_are_not_here",
    ),
    "take the tasks of srun for one run": Sabotage(
        "train/hosts.py",
        "if slurm else 1",
        "if True else 1",
        "tests/train/test_hosts.py -k environment_is_read",
    ),
    "sweep two grids at once": Sabotage(
        "report/sweep.py",
        "if found := _differences(hosts.from_first(lambda: open_folder(recipe, folder)), recipe):",
        "if found := hosts.from_first(lambda: open_folder(recipe, folder)) and []:",
        "tests/report/test_sweep.py -k other_grid_than_the_first",
    ),
    "count every branch": Sabotage(
        "checks.py",
        '(max(inner) if kind == "cond" else sum(inner))',
        "sum(inner)",
        "tests/test_checks.py -k matmul_flops_against",
    ),
    "leave convolutions in loops as they are": Sabotage(
        "autodiff/loops.py",
        "if not any(_is_out_of_order(equation) for equation in _equations(traced.jaxpr)):",
        "if True:",
        "tests/autodiff/test_loops.py -k in_order",
    ),
    "put convolutions in order on every device": Sabotage(
        "autodiff/loops.py",
        "cpu=in_order, default=as_written",
        "cpu=in_order, default=in_order",
        "tests/autodiff/test_loops.py -k other_devices",
    ),
    "put no inner loop in order": Sabotage(
        "autodiff/loops.py",
        "{name: _changed(value) for name, value in equation.params.items()}",
        "equation.params",
        "tests/autodiff/test_loops.py -k changes_no_number",
    ),
    "exchange the axes of an image": Sabotage(
        "autodiff/loops.py",
        "return jax.lax.transpose(y, _way(order.out_spec, written.out_spec))",
        "return jax.lax.transpose(y, _way(written.out_spec, order.out_spec))",
        "tests/autodiff/test_loops.py -k changes_no_number",
    ),
    "evaluate in a plain loop": Sabotage(
        "train/evaluation.py",
        "jax.lax.map(loop_body(total), rows)",
        "jax.lax.map(total, rows)",
        "tests/autodiff/test_loops.py -k in_order",
    ),
    "train ensembles in a plain loop": Sabotage(
        "train/ensemble.py",
        "loop_body(one), states)",
        "one, states)",
        "tests/autodiff/test_loops.py -k in_order",
    ),
    "add parts up in a plain loop": Sabotage(
        "train/step.py",
        "jax.lax.scan(loop_body(add), (carry",
        "jax.lax.scan(add, (carry",
        "tests/autodiff/test_loops.py -k in_order",
    ),
    "probe in a plain loop": Sabotage(
        "train/probe.py",
        "jax.lax.map(loop_body(some), ",
        "jax.lax.map(some, ",
        "tests/autodiff/test_loops.py -k in_order",
    ),
    "begin a run without its extra": Sabotage(
        "train/loop.py",
        'require("train", "a run", "filelock", "sklearn", "tensorboardX", "tqdm")',
        "pass",
        "tests/test_install.py -k one_line",
    ),
    "draw last, after hours of work": Sabotage(
        "report/publish.py",
        'require("report", "the figure of a recipe", "matplotlib")',
        "pass",
        "tests/test_install.py -k one_line",
    ),
    "name another extra": Sabotage(
        "data/vocabulary.py",
        'require("data", "a vocabulary of byte pairs", "tokenizers")\n        import',
        'require("train", "a vocabulary of byte pairs", "tokenizers")\n        import',
        "tests/test_install.py -k extra_that_is_named",
    ),
    "load SciPy with the library": Sabotage(
        "data/markov.py",
        "import numpy as np\n",
        "import numpy as np\nimport scipy.special\n",
        "tests/test_install.py -k plain_import",
    ),
    "load SciPy's statistics with a recipe": Sabotage(
        "report/statistics.py",
        "import numpy as np\n",
        "import numpy as np\nimport scipy.stats\n",
        "tests/test_install.py -k without_drawing",
    ),
    "load Matplotlib with a recipe": Sabotage(
        "report/panel.py",
        "import numpy as np\n",
        "import matplotlib\nimport numpy as np\n",
        "tests/test_install.py -k core_alone",
    ),
    "use what only another library brings": Sabotage(
        "report/figure.py",
        "    import matplotlib\n",
        "    import matplotlib\n    import chex\n",
        "tests/test_install.py -k declared",
    ),
    "judge runs whose rates are in doubt": Sabotage(
        "report/study_page.py",
        "if not doubt(chosen):",
        "if True:",
        "tests/report/test_finding.py -k nothing_is_judged",
    ),
    "count what is open among what was expected": Sabotage(
        "report/finding.py",
        "if open_ < len(verdicts) else []",
        "if verdicts else []",
        "tests/report/test_finding.py -k nothing_is_judged",
    ),
    "do not count trials that a search has grown by": Sabotage(
        "report/bar.py",
        "for step in tuning.wanted(found[v])]",
        "for step in (0, 1, -1) if step not in found[v]]",
        "tests/report/test_bar.py -k counts_what",
    ),
    "a bar forgets the steps behind it": Sabotage(
        "report/bar.py",
        "self.steps.total = self.steps.n + sum(map(self._num_steps, left))",
        "self.steps.total = sum(map(self._num_steps, left))",
        "tests/report/test_bar.py -k counts_what",
    ),
    "a bar of several runs leaves out what a run resumed": Sabotage(
        "train/loop.py",
        "            progress.update(step)\n",
        "            progress.update(0)\n",
        "tests/train/test_loop.py -k moved_on",
    ),
    "say nothing where nothing is left to run": Sabotage(
        "report/publish.py",
        'if progress(chosen, results_dir) == "complete":',
        "if False:",
        "tests/report/test_bar.py -k records_that_are_in",
    ),
    "leave out the recipes of a paper": Sabotage(
        "report/readme.py",
        'came(run) if run else "Not run here."',
        'came(run[:0]) if run else "Not run here."',
        "tests/report/test_readme.py -k fill_replaces",
    ),
    "links as seen from where the command runs": Sabotage(
        "report/readme.py",
        "here = pathlib.Path(os.path.relpath(results_dir, readme.parent))",
        "here = results_dir",
        "tests/report/test_readme.py -k fill_replaces",
    ),
}


def main(chosen: list[str]) -> int:
    """Runs the sabotages, all of them by default; the number that survive."""
    survived = []
    for name in chosen or SABOTAGES:
        test = first_failure(SABOTAGES[name])
        print(f"caught    {name}: {test}" if test else f"SURVIVED  {name}", flush=True)
        if not test:
            survived.append(name)
    total = len(chosen or SABOTAGES)
    print(f"{total - len(survived)} of {total} sabotages caught")
    return len(survived)


def first_failure(sabotage: Sabotage) -> str:
    """The test that fails on a copy of the checkout with the line changed; "" if none does."""
    with tempfile.TemporaryDirectory() as directory:
        copy = pathlib.Path(directory)
        for name in COPIED:
            source = ROOT / name
            place = shutil.copytree if source.is_dir() else shutil.copy
            place(source, copy / name)
        path = copy / "dfa_jax" / sabotage.file
        text = path.read_text()
        if text.count(sabotage.line) != 1:
            raise SystemExit(
                f"{sabotage.file} has not exactly one {sabotage.line!r}; mend mutate.py"
            )
        path.write_text(text.replace(sabotage.line, sabotage.instead))
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider"]
        cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".jax_cache"))
        done = subprocess.run(
            [*command, *shlex.split(sabotage.tests)],
            cwd=copy,
            env={**os.environ, "PYTHONPATH": str(copy), "JAX_COMPILATION_CACHE_DIR": cache},
            capture_output=True,
            text=True,
            check=False,
        )
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED ")]
    if done.returncode and not failed:  # stopped at the first failure, it exits with 1 or 2
        raise SystemExit(f"pytest did not run ({done.returncode}):\n{done.stdout}{done.stderr}")
    return failed[0].removeprefix("FAILED ") if failed else ""


if __name__ == "__main__":
    sys.exit(1 if main(sys.argv[1:]) else 0)
