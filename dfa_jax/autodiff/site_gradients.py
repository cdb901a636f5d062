r"""Local gradients: one error per site, and local VJPs that make weight gradients of it.

The parameters between the previous sites and site `l` learn from the error `delta_l` that the site
receives. `site_gradients` is that sentence as code, for errors that are made of the output error;
`deliver` is it for errors that are known beforehand.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.sharding import AxisType
from jaxtyping import Array

from dfa_jax import tree
from dfa_jax.autodiff import layers, loss, sites
from dfa_jax.autodiff.objective import GradEstimate, Objective, as_objective
from dfa_jax.errors import SiteError
from dfa_jax.models.base import Model, tapped_of
from dfa_jax.types import Batch, LossFn, Params, SiteArrays

ErrorTap = Literal["logits", "last_hidden"]
"""Where the output error is read: at the model's outputs, or at the last site."""

Backward = Literal["sequential", "layer_parallel"]
"""Local VJPs of a scanned stack in a loop over its blocks, or all of them at once."""


def site_gradients(
    model: Model,
    loss_fn: LossFn | Objective,
    params: Params,
    batch: Batch,
    send: Callable[[Array, SiteArrays, Array], SiteArrays],
    *,
    error_tap: ErrorTap = "logits",
    backward: Backward = "sequential",
    at: Model | None = None,
) -> GradEstimate:
    r"""Gradients of all parameters from one error per site, by local VJPs.

    With `h_l` the activity of site `l`, `e` the error at the tap and `delta = send(e, h, shares)`,

        grad theta = (dy/dtheta)^T dL/dy + sum_l (dh_l/dtheta)^T delta_l,

    where every Jacobian stops at the sites below. The true gradient is the case
    `delta_l = dL/dh_l`.

    Args:
        model: bound to its state and key, if it has any.
        loss_fn: the loss of the outputs.
        params: the parameters.
        batch: inputs and targets.
        send: maps the error `[*batch, width]` at the tap, the activities `[*batch, *features]` by
            site (a stacked site has its layer axes in front), and the share `[*batch]` that each
            row has in the mean (`1 / N`, or by its weight) to one error per site, like the
            activity.
        error_tap: `"logits"` reads `e = dL/dy` at the tapped outputs; `"last_hidden"` reads
            `dL/dh` at the last site.
        backward: in which order the local VJPs of a scanned stack are computed.
        at: the same module with other sites, if the errors that arrive at those are wanted.

    Raises:
        SiteError: a site was not reached, or its error has another shape than its activity; or
            there is no stack for a layer-parallel backward pass.
        InputError: the model has several outputs and none of them is tapped.
    """
    objective = as_objective(loss_fn)
    elsewhere = _elsewhere(model, at, params, batch)

    def forward_cut(params, elsewhere):
        orders = _cut_and_perturbed(model, at, elsewhere)
        found = sites.apply_with_orders(model, params, batch.inputs, orders)
        movable, activities = refuse_output_site(model, _movable(found.outputs), found.activities)
        return (movable, found.sown, activities), found

    def vjp(forward, *arguments):
        found, pull, passed = jax.vjp(forward, *arguments, has_aux=True)
        return found, layers.in_parallel(pull) if backward == "layer_parallel" else pull, passed

    if error_tap == "logits":
        (movable, sown, activities), pull, passed = vjp(forward_cut, params, elsewhere)
        found, error, shares = _loss_and_error(objective, model, passed, batch, movable)
        sent = like_activities(send(model.read_error(error), activities, shares), activities)
        grads, arrived = pull((error, jax.tree.map(jnp.ones_like, sown), sent))
        return found._replace(grads=grads, errors=_all_errors(model, at, sent, arrived))

    last = _last_hidden(model)

    def forward_body(params, elsewhere):
        (_, sown, activities), passed = forward_cut(params, elsewhere)
        return (sown, activities), passed

    def forward_head(params, hidden, elsewhere):
        below = {s: jnp.zeros(place.stack) for s, place in model.where.items() if s != last}
        orders = sites.at_sites(model, "cut", below)
        orders = sites.merge_orders(orders, sites.at_sites(model, "replace", {last: hidden}))
        orders = sites.merge_orders(orders, sites.at_sites(at or model, "perturb", elsewhere))
        return _movable(sites.apply_with_orders(model, params, batch.inputs, orders).outputs)

    (sown, activities), pull_body, passed = vjp(forward_body, params, elsewhere)
    movable, pull_head = jax.vjp(forward_head, params, activities[last], elsewhere)
    found, output_error, shares = _loss_and_error(objective, model, passed, batch, movable)
    head_grads, error, above = pull_head(output_error)
    error = error.reshape(*error.shape[: model.batch_axes], -1)
    sent = like_activities(send(error, activities, shares), activities)
    body_grads, below = pull_body((jax.tree.map(jnp.ones_like, sown), sent))
    errors = _all_errors(model, at, sent, tree.add(above, below))
    return found._replace(grads=tree.add(head_grads, body_grads), errors=errors)


def _movable(outputs: Any) -> dict[str, Array]:
    """The outputs that have a derivative, by name."""
    named = tree.leaves_by_name(outputs).items()
    return {n: leaf for n, leaf in named if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)}


def _loss_and_error(
    objective: Objective, model: Model, passed: sites.Passed, batch: Batch, movable: Any
) -> tuple[GradEstimate, dict[str, Array], Array]:
    """The loss with what has been sown, its derivative by the outputs, and each row's share."""
    *front, _ = model.error_shape(passed.outputs)

    def of_outputs(movable):
        outputs = tree.with_leaves(passed.outputs, movable)
        found = loss.as_loss(objective.loss_fn(outputs, batch.targets))
        return loss.mean(found), (loss.total_weight(found), loss.row_shares(found, tuple(front)))

    (value, (weight, shares)), error = jax.value_and_grad(of_outputs, has_aux=True)(movable)
    if passed.sown is not None:
        value += passed.sown
    return GradEstimate(value, passed.outputs, {}, {}, passed.state, weight), error, shares


def cut_gradients(
    model: Model, loss_fn: LossFn | Objective, params: Params, batch: Batch, at: Model | None
) -> GradEstimate:
    """Gradients of the graph that is cut at every site, where nothing is sent.

    Like `site_gradients` with errors of zero, but without a product of zeros: parameters from which
    every path to the loss leads through a site have a gradient of zero, and no work is done for it.

    Raises:
        SiteError: no parameter is left to learn.
    """
    objective = as_objective(loss_fn)
    elsewhere = _elsewhere(model, at, params, batch)

    def total(params, elsewhere):
        orders = _cut_and_perturbed(model, at, elsewhere)
        passed = sites.apply_with_orders(model, params, batch.inputs, orders)
        movable, _ = refuse_output_site(model, _movable(passed.outputs), passed.activities)
        outputs = tree.with_leaves(passed.outputs, movable)
        found = objective.of_pass(model, passed._replace(outputs=outputs), batch.targets)
        return found.total, found

    (grads, arrived), found = jax.grad(total, argnums=(0, 1), has_aux=True)(params, elsewhere)
    sent = {site: jnp.zeros_like(found.activities[site]) for site in model.sites}
    errors = _all_errors(model, at, sent, arrived)
    return GradEstimate(found.mean, found.outputs, grads, errors, found.state, found.weight)


def deliver(
    model: Model,
    loss_fn: LossFn | Objective,
    params: Params,
    batch: Batch,
    sent: SiteArrays,
    *,
    at: Model | None = None,
) -> GradEstimate:
    r"""Gradients from errors that are known beforehand, by local VJPs.

        grad theta = dT/dtheta + sum_l (dh_l/dtheta)^T delta_l

    where every Jacobian stops at the sites below, so that the total `T` reaches only what lies
    above the last site on the way to each of its terms.

    Args:
        model: whose sites the errors are sent to.
        loss_fn: a loss of the outputs, or the objective whose total `T` is.
        params: the parameters.
        batch: inputs and targets.
        sent: `delta_l` by site.
        at: the same module with other sites, if the errors that arrive at those are wanted.
    """
    objective, elsewhere = as_objective(loss_fn), _elsewhere(model, at, params, batch)

    def forward_cut(params, elsewhere):
        found = objective(model, params, batch, _cut_and_perturbed(model, at, elsewhere))
        return (found.total, found.activities), found

    (total, activities), pull, found = jax.vjp(forward_cut, params, elsewhere, has_aux=True)
    grads, arrived = pull((jnp.ones_like(total), like_activities(sent, activities)))
    errors = _all_errors(model, at, sent, arrived)
    return GradEstimate(found.mean, found.outputs, grads, errors, found.state, found.weight)


def _elsewhere(model: Model, at: Model | None, params: Params, batch: Batch) -> SiteArrays:
    """Zero perturbations at the places of `at` that are no sites."""
    if at is None:
        return {}
    zeros = sites.zero_activities(at, params, batch.inputs)
    return {site: zero for site, zero in zeros.items() if at.where[site] not in model.places}


def _cut_and_perturbed(model: Model, at: Model | None, elsewhere: SiteArrays) -> sites.Orders:
    """The graph cut at every site, and perturbed at the other places."""
    perturbed = sites.at_sites(at or model, "perturb", elsewhere)
    return sites.merge_orders(sites.cut_orders(model), perturbed)


def _all_errors(
    model: Model, at: Model | None, sent: SiteArrays, arrived: SiteArrays
) -> SiteArrays:
    """What was sent to the sites, or what is at other places: sent there, or made by local VJPs."""
    if at is None:
        return sent
    names = {place: site for site, place in model.where.items()}
    return {s: arrived[s] if s in arrived else sent[names[at.where[s]]] for s in at.sites}


def _last_hidden(model: Model) -> str:
    if model.places[-1].stack:
        raise SiteError(
            f"error_tap='last_hidden' reads the error at the last site, '{model.sites[-1]}', which"
            " is a stack of layers; add a last site outside the stack, or use error_tap='logits'"
        )
    return model.sites[-1]


def refuse_output_site(
    model: Model, outputs: dict[str, Array], activities: SiteArrays
) -> tuple[dict[str, Array], SiteArrays]:
    """The identity, but for an error where no parameter moves the outputs from above the sites.

    A site that is the model's output through a scan, a remat or a tuple is not seen before here.
    """

    @jax.custom_jvp
    def check(outputs, activities):
        return outputs, activities

    def check_jvp(primals, tangents):
        tapped = tapped_of(tangents[0], model.tap).values()
        if all(isinstance(t, SymbolicZero) for t in tapped):
            raise SiteError(
                f"no parameter lies between the last site, '{model.sites[-1]}', and the model's"
                " outputs, so nothing would learn from the exact output error; leave out the site"
                " that is the model's output"
            )
        return primals, jax.tree.map(_instantiate, tangents)

    check.defjvp(check_jvp, symbolic_zeros=True)
    return check(outputs, activities)


def like_activities(sent: SiteArrays, activities: SiteArrays) -> SiteArrays:
    """The errors in the activities' types, after checking their shapes."""
    for site, h in activities.items():
        if site not in sent or sent[site].shape != h.shape:
            found = sent[site].shape if site in sent else "none"
            raise SiteError(f"site '{site}' needs an error of shape {h.shape}; it was sent {found}")
    return {site: _placed(sent[site].astype(h.dtype), h) for site, h in activities.items()}


def _placed(error: Array, h: Array) -> Array:
    """The error split over devices as the activity's type says, on a mesh of explicit axes."""
    if AxisType.Explicit not in jax.sharding.get_abstract_mesh().axis_types:
        return error
    return jax.sharding.reshard(error, jax.typeof(h).sharding)


def _instantiate(tangent: Any) -> Any:
    if isinstance(tangent, SymbolicZero):
        return jnp.zeros(tangent.shape, str(tangent.dtype))
    return tangent
