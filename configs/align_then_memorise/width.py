"""Width: wider networks fit better under direct feedback, and their hidden layers agree less.

Paper: Refinetti, d'Ascoli, Ohana and Goldt (2021), Align, then memorise, arXiv 2011.12428, the
    width study of its appendix
Command: python scripts/reproduce.py align_then_memorise/width
Time: 12 min on 2 cores
Expect: the training error falls with width, above backpropagation's; the cosine between seeds falls
    with width in hidden layers, and stays the same in the output layer.

As in the paper: the first 10,000 images of MNIST, 14 x 14 pixels, three hidden layers, widths from
16 up. Not as in the paper: widths to 256 in place of 512, 100 epochs at a higher rate in place
of 1,000, five seeds in place of ten, ReLU alone, MNIST alone.
"""

import dataclasses
from collections.abc import Sequence

from dfa_jax.report import catalogue, ensembles, finding, panel, style
from dfa_jax.report.ensembles import Ensemble
from dfa_jax.report.finding import Finding
from dfa_jax.report.panel import Figure
from dfa_jax.report.study import Results, Study
from dfa_jax.report.style import Theme

WIDTHS = (16, 32, 64, 128, 256)
RULES = ("direct_feedback_alignment", "backprop")
BASE = catalogue.load_study("align_then_memorise/deep_networks").cases


def widened(rule: str, width: int) -> Ensemble:
    """The ensemble of the deep networks' study at another width."""
    base = BASE[f"mnist/relu/{rule}"]
    assert isinstance(base, Ensemble)
    model = base.config.model.clone(widths=(width,) * 3)
    config = dataclasses.replace(base.config, model=model, num_epochs=100, log_evaluations=12)
    return dataclasses.replace(base, config=config, seeds=base.seeds[:5])


CASES = {f"width {width}/{rule}": widened(rule, width) for width in WIDTHS for rule in RULES}


def draw(results: Results, theme: Theme) -> Figure:
    """Training error, and cosine between seeds by layer, against width."""
    figure, axes = panel.panels(1, 2)
    error, similar = axes[0]
    for rule in RULES:
        held = [w for w in WIDTHS if f"width {w}/{rule}" in results]
        ends = [100 * results[f"width {w}/{rule}"]["train_error"][-1].mean() for w in held]
        error.plot(held, ends, "o-", color=style.colour(rule, theme), label=style.label(rule))
    error.set(title="Training error", xscale="log", xlabel="width", ylabel="training error, %")
    error.legend()
    held = [w for w in WIDTHS if f"width {w}/{RULES[0]}" in results]
    for place, ends in enumerate(zip(*[similarity(results, w) for w in held], strict=True)):
        similar.plot(
            held, ends, "o-", color=ensembles.layer_colour(place, theme), label=f"layer {place + 1}"
        )
    similar.set(title="Similarity under direct feedback", xscale="log", xlabel="width")
    similar.set(ylabel="cosine between seeds", ylim=(-0.05, 1))
    similar.legend()
    return figure


def similarity(results: Results, width: int) -> list[float]:
    """Final cosine between seeds of each layer."""
    found = results[f"width {width}/{RULES[0]}"]
    names = ensembles.layers(found, "seed_similarity")
    return [float(found[f"seed_similarity/{name}"][-1]) for name in names]


def findings(results: Results) -> Sequence[Finding]:
    """Ends of the range of widths."""
    narrow, wide = WIDTHS[0], WIDTHS[-1]
    errors = {label: found["train_error"][-1].mean() for label, found in results.items()}
    narrow_layers, wide_layers = similarity(results, narrow), similarity(results, wide)
    claim = "read off the authors' plots"
    gap = [errors[f"width {w}/{RULES[0]}"] - errors[f"width {w}/{RULES[1]}"] for w in WIDTHS]
    return [
        finding.at_least(
            f"DFA: training error at width {narrow} less that at {wide}",
            errors[f"width {narrow}/{RULES[0]}"] - errors[f"width {wide}/{RULES[0]}"],
            0.0,
            claim,
        ),
        finding.at_least("training error, DFA less BP, all widths", gap, 0.0, claim),
        *[
            finding.at_least(
                f"cosine between seeds of layer {place + 1}: width {narrow} less {wide}",
                narrow_layers[place] - wide_layers[place],
                0.05,
                claim,
            )
            for place in range(len(wide_layers) - 1)
        ],
        finding.near(
            f"cosine between seeds of the output layer: width {narrow} less {wide}",
            narrow_layers[-1] - wide_layers[-1],
            0.0,
            0.1,
            claim,
        ),
    ]


RECIPE = Study(
    title="Width: fit and agreement between seeds",
    paper="Refinetti, d'Ascoli, Ohana and Goldt (2021), Align, then memorise, arXiv 2011.12428",
    minutes=12,
    cases=CASES,
    draw=draw,
    findings=findings,
)
