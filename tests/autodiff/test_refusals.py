"""A site that cannot work is refused by name: there is no silent wrong gradient."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from dfa_jax import rules
from dfa_jax.errors import SiteError
from dfa_jax.models import from_linen
from dfa_jax.rules import functional
from tests import helpers
from tests.helpers import Layer, Stack

DIRECT, SHALLOW = rules.DirectFeedbackAlignment(), rules.Shallow()
by_either = pytest.mark.parametrize("rule", [DIRECT, SHALLOW], ids=["direct", "shallow"])


def use(module, sites, shape=(8,), rule=DIRECT):
    """What a user does until the first gradient: model, parameters, rule, estimate."""
    case = helpers.made(module, sites, helpers.images(shape=shape))
    params, state = helpers.started(rule, case)
    functional.estimate(
        rule, case.model, helpers.LOSS, params, state, (), case.batch, jax.random.key(0)
    )


class Scanned(nn.Module):
    """Steps of a layer under `nn.scan` with options of the test's choice."""

    options: dict
    readout: bool = True
    length: int = 3

    @nn.compact
    def __call__(self, x):
        h, _ = nn.scan(Layer, length=self.length, **self.options)(name="layers")(x, None)
        return nn.Dense(3, name="readout")(h) if self.readout else h


OVER_LAYERS = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
OVER_TIME = {"variable_broadcast": "params", "split_rngs": {"params": False}}
CARRIED = {"variable_axes": {"params": 0, "intermediates": 0}, "split_rngs": {"params": True}}


def test_scan_without_intermediates():
    """Documented contract: the activity cannot leave the loop; the message has the remedy."""
    for site in ("layers", "layers/dense", "layers/dense:input"):
        with pytest.raises(SiteError, match=rf"'{site}'.*intermediates.*variable_axes"):
            from_linen(Scanned(OVER_LAYERS), site, helpers.images().inputs)


def test_scan_over_time():
    """Documented contract: one set of parameters for all steps has no one error per layer."""
    with pytest.raises(SiteError, match="'layers'"):
        use(Scanned(OVER_TIME), "layers")
    with pytest.raises(SiteError, match=r"'layers'.*\(3,\) steps that is not over layers"):
        use(Scanned(OVER_TIME | {"variable_axes": {"intermediates": 0}}), "layers")


@pytest.mark.parametrize("axes", [(0, -1), (-1, 0), (-1, -1), (1, 0)])
def test_layer_axes_that_are_not_in_front(axes):
    """Documented contract: errors have layer axes in front; a coincidence of sizes is no excuse.

    Batch, width and depth are all 16, so no later check of shapes could tell one from another.
    """
    options = {"variable_axes": dict(zip(("params", "intermediates"), axes, strict=True))}
    with pytest.raises(SiteError, match=r"'layers'.*\(16,\) steps.*axis in front"):
        use(Scanned(options | {"split_rngs": {"params": True}}, length=16), "layers", (16,))


def test_scan_over_as_many_times_as_units():
    """Documented contract: as above, for a loop over 8 times of a layer with 8 units."""
    options = OVER_TIME | {"variable_axes": {"intermediates": 0}}
    with pytest.raises(SiteError, match=r"'layers'.*not over layers"):
        use(Scanned(options, length=8), "layers")


class Twice(nn.Module):
    @nn.compact
    def __call__(self, x):
        layer = nn.Dense(8, name="dense")
        return nn.Dense(3, name="readout")(layer(jnp.tanh(layer(x))))


def test_site_called_twice():
    """Documented contract: one error cannot serve two places."""
    with pytest.raises(SiteError, match="'dense'.*more than once.*a submodule of its own"):
        from_linen(Twice(), "dense", helpers.images().inputs)


class TwiceLater(nn.Module):
    """Calls its layer twice, but not when it is initialised."""

    @nn.compact
    def __call__(self, x):
        layer = nn.Dense(8, name="dense")
        h = layer(x)
        return nn.Dense(3, name="readout")(h if self.is_initializing() else layer(h))


def test_site_called_twice_after_initialisation():
    """Documented contract: what the survey could not see is refused in the forward pass."""
    with pytest.raises(SiteError, match="'dense'.*more than once"):
        use(TwiceLater(), "dense")


TRANSFORMS = {
    "jit": lambda f, x: jax.jit(f)(x),
    "vmap": lambda f, x: jax.vmap(f)(x),
    "checkpoint": lambda f, x: jax.checkpoint(f)(x),
    "scan": lambda f, x: jax.lax.scan(lambda h, _: (f(h), None), x, length=2)[0],
    "cond": lambda f, x: jax.lax.cond(x.sum() > 0, f, lambda x: x, x),
    "while": lambda f, x: jax.lax.fori_loop(0, 2, lambda _, h: f(h), x),
}


class Raw(nn.Module):
    """A submodule inside a raw transform; `shy` about it while it is initialised."""

    transform: str
    shy: bool
    inside: bool = False

    @nn.compact
    def __call__(self, x):
        def layer(x):
            dense = nn.Dense(8, name="dense") if self.inside else outer
            return jnp.tanh(dense(x))

        outer = None if self.inside else nn.Dense(8, name="dense")
        if self.shy and self.is_initializing():
            h = layer(x)
        else:
            h = TRANSFORMS[self.transform](layer, x)
        return nn.Dense(3, name="readout")(h)


@pytest.mark.parametrize("transform", list(TRANSFORMS))
@pytest.mark.parametrize("shy", [False, True], ids=["always", "not at init"])
@pytest.mark.parametrize("inside", [False, True], ids=["bound outside", "bound inside"])
def test_raw_transform(transform, shy, inside):
    """Documented contract: a site in a raw transform is named, whether Flax sees it or not.

    Its activity would leak out as a constant, and the layer below would get zeros for a gradient.
    """
    place = "dense:input" if inside else "dense"
    with pytest.raises(SiteError, match=r"'dense.*raw JAX transform.*nn\.scan"):
        use(Raw(transform, shy, inside), place)


class Sometimes(nn.Module):
    """Reaches its layer only when it is initialised, or when the input is wide."""

    @nn.compact
    def __call__(self, x):
        if self.is_initializing() or x.shape[0] > 100:
            x = nn.Dense(8, name="dense")(x)
        return nn.Dense(3, name="readout")(x)


def test_site_not_reached():
    """Documented contract: a site that a forward pass goes around is named, not skipped."""
    for site in ("dense", "dense:input"):
        with pytest.raises(SiteError, match=f"'{site}' was not reached"):
            use(Sometimes(), site)


def test_unknown_site():
    """Documented contract: the nearest name, and the list of all."""
    with pytest.raises(
        SiteError, match="'layer_9'; did you mean 'layer_[0-2]'.*embed, layer_0/dense"
    ):
        use(Stack(), "layer_9")
    with pytest.raises(SiteError, match="no credit site"):
        use(Stack(), [])
    with pytest.raises(SiteError, match=r"'layer_\*/\*/\*'"):
        use(Stack(), ["embed", "layer_*/*/*"])


class Bare(nn.Module):
    """Its last layer has no readout above it, and is wrapped in some way."""

    wrap: str

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(3, name="first")(x)
        if self.wrap == "plain":
            return nn.Dense(3, name="last")(x)
        if self.wrap == "tuple":
            return Layer(name="last")(x)[0]
        kind = {"jit": nn.jit(nn.Dense), "remat": nn.remat(nn.Dense)}[self.wrap]
        return kind(3, name="last")(x)


@pytest.mark.parametrize("wrap", ["plain", "tuple", "jit", "remat"])
@pytest.mark.parametrize("sites", [["last"], ["first", "last"]])
@by_either
def test_site_that_is_the_output(wrap, sites, rule):
    """Documented contract: the output has the exact error; a projected one would replace it silently."""
    with pytest.raises(SiteError, match="'last'.*output"):
        use(Bare(wrap), sites, rule=rule)


@pytest.mark.parametrize("site", ["layers", "layers/dense:input"])
@by_either
def test_scanned_output(site, rule):
    """Documented contract: the last layer of a stack may be the output as well."""
    module = Scanned(CARRIED, readout=False)
    if site == "layers":
        with pytest.raises(SiteError, match="'layers'.*output"):
            use(module, site, (3,), rule)
    else:
        use(module, site, (3,), rule)  # the cut is before the last layer's parameters


class Two(nn.Module):
    @nn.compact
    def __call__(self, x):
        h = nn.Dense(8)(x)
        return h, jnp.tanh(h)


class Forked(nn.Module):
    @nn.compact
    def __call__(self, x):
        a, b = Two(name="two")(x)
        return nn.Dense(3, name="readout")(a + b)


def test_several_outputs():
    """Documented contract: which of two arrays gets the error is not ours to guess; the message
    lists them, and a name chooses one."""
    with pytest.raises(SiteError, match=r"'two' has 2.*'0' \(16, 8\), '1' \(16, 8\).*'two:0'"):
        use(Forked(), "two")
    with pytest.raises(SiteError, match="array at site 'two' '3'.*Known: 0, 1"):
        use(Forked(), "two:3")
    use(Forked(), "two:1")


class Frozen(nn.Module):
    """Applies another module as a function, behind a jit of its own."""

    @nn.compact
    def __call__(self, x):
        inner = nn.Sequential([nn.Dense(8), nn.tanh], parent=None)
        weights = self.param("frozen", lambda key: inner.init(key, x)["params"])
        h = jax.jit(inner.apply)({"params": weights}, x)
        return nn.Dense(3, name="readout")(nn.Dense(8, name="dense")(h))


def test_submodule_of_another_module_applied_inside():
    """Documented contract: what is applied as a function has no path here, and is no site."""
    with pytest.raises(SiteError, match="'layers_0'"):
        use(Frozen(), "layers_0")
    model = from_linen(Frozen(), "dense", helpers.images().inputs)
    assert list(model.linear_maps) == ["frozen/layers_0", "dense", "readout"]
