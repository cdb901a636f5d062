"""Loss against compute at the paper's scale: 23M to 1.3B weights on C4, on a TPU slice.

Paper: Filipovich, Cappelli, Hesslow and Launay (2022), Scaling Laws Beyond Backpropagation, arXiv
    2210.14593
Command: python scripts/reproduce.py scaling_laws/pod/frontier_c4
Time: 1.4e+09 min on 2 cores, counted and not run
Expect: as `scaling_laws/frontier`, over nearly five decades of compute in place of two and a half:
    BP below DFA below the shallow control at every budget, and gaps that grow with it.

All of it, with three seeds and the search for rates, is 3.4e21 FLOPs as `scaling.flops` counts
them, four fifths of them in the two largest sizes: 46 hours on a TPU v5e-256 (197e12 FLOP/s a chip
by its maker) if it sustains 40 % of its peak, and up to a third more, since the count leaves out
the forward pass that rematerialised blocks repeat, and evaluations. One run of the largest size
under BP is 2.6e20, or 3.6 hours. `sweep.py --dry-run` has each. We have not run any of it.

Eight sizes, 20 tokens a weight (Hoffmann et al., 2022), windows of 1,024 of 32,768 byte pairs of
TFDS `c4/en`; bfloat16 with float32 parameters, blocks scanned, and rematerialised from 16 blocks
on. Sizes, schedule, batches and the rates at which the search begins are our choice: the paper's
are not known to us. Post-LN as in `scaling_laws/frontier`, for `scaling_laws/layer_norm`'s reasons;
24 such blocks are hard to train by backpropagation too, so the warm-up grows with the run.

On a slice of several hosts, `scripts/train.py` trains one run at a time (docs/pods.md); a worker of
`scripts/sweep.py` is one process with chips of its own, and does not join such hosts. The training
tokens, 28 x 2^30 of them in 60 GB, are packed once and streamed (docs/data.md). A step's batch must
divide by the slice's chips over `model_axis`, which it does on 16 to 256 of them; a chip computes
four windows at once, and adds up.
"""

import functools
from typing import NamedTuple

from dfa_jax.data import TextData
from dfa_jax.models import Transformer
from dfa_jax.models.transformer import credit_sites
from dfa_jax.optim import Optimizer
from dfa_jax.report import catalogue, ladder
from dfa_jax.report.recipe import Recipe, Tuning
from dfa_jax.report.run_study import RunStudy
from dfa_jax.rules import LearningRule
from dfa_jax.train.config import TrainConfig

FRONTIER = catalogue.run_file("scaling_laws/frontier")
VOCABULARY, CONTEXT = 32_768, 1024
TOKENS_A_WEIGHT = 20
PAPER = (
    "Filipovich, Cappelli, Hesslow and Launay (2022), Scaling Laws Beyond Backpropagation, arXiv"
    " 2210.14593"
)


class Size(NamedTuple):
    """A rung of the ladder, and how it is spread over 256 chips of 16 GB.

    Attributes:
        layers: blocks.
        width: units of the stream.
        batch_size: windows a step.
        model_axis: chips over which matrices are split. Parameters, their gradients and Adam's
            moments are 16 bytes a weight: 20 GB for the largest, 5 GB on each of four.
    """

    layers: int
    width: int
    batch_size: int = 256
    model_axis: int = 1


SIZES = (
    Size(6, 384),
    Size(8, 512),
    Size(10, 640),
    Size(12, 768),
    Size(16, 1024),
    Size(20, 1280, 512, 2),
    Size(24, 1536, 512, 4),
    Size(24, 2048, 512, 4),
)
REMAT_FROM = 16  # blocks
WINDOWS_AT_ONCE = 4  # a chip


def config(size: Size, rule: LearningRule, data: TextData, most_tokens: float) -> TrainConfig:
    """The run of one size under one rule; of more tokens than there are, as many as there are."""
    model = Transformer(
        num_outputs=VOCABULARY,
        num_layers=size.layers,
        width=size.width,
        num_heads=size.width // 64,
        context=CONTEXT,
        norm="post",
        scan=True,
        remat=size.layers >= REMAT_FROM,
        dtype="bfloat16",
    )
    num_tokens = int(min(TOKENS_A_WEIGHT * ladder.weights(model), most_tokens))
    steps = num_tokens / (size.batch_size * CONTEXT)
    optimizer = Optimizer(
        "adam",
        learning_rate=float(f"{2e-3 * 384 / size.width:.3g}"),
        b2=0.98,
        clip_norm=1.0,
        warmup_fraction=max(0.02, round(FRONTIER["WARMUP_STEPS"] / steps, 4)),
    )
    return TrainConfig(
        data=data,
        model=model,
        sites=credit_sites(model, "macro"),
        rule=rule,
        optimizer=optimizer,
        batch_size=size.batch_size,
        examples_at_once=WINDOWS_AT_ONCE,
        num_tokens=num_tokens,
        log_evaluations=24,
        decay_fraction=0.1,
        alignment_examples=0,
        model_axis=size.model_axis,
    )


def study(
    title: str,
    minutes: float,
    data: TextData,
    sizes: tuple[Size, ...],
    most_tokens: float = float("inf"),
) -> RunStudy:
    """All sizes under all rules on one text, judged as in `scaling_laws/frontier`."""
    runs = Recipe(
        title=title,
        paper=PAPER,
        minutes=minutes,
        variants={
            f"{size.layers}x{size.width}/{arm}": config(size, rule, data, most_tokens)
            for size in sizes
            for arm, rule in FRONTIER["ARMS"].items()
        },
        seeds=(0, 1, 2),
        tuning=Tuning(num_validation=2**20, fraction=0.15, factor=2.0),
    )
    return RunStudy(
        title=title,
        paper=PAPER,
        minutes=minutes,
        runs=runs,
        draw=functools.partial(FRONTIER["draw"], runs.variants),
        findings=functools.partial(FRONTIER["findings"], runs.variants),
    )


RECIPE = study(
    "Loss against compute on C4, at the paper's scale",
    1.4e9,
    TextData(
        "c4/en",
        tokenizer="bpe",
        vocab_size=VOCABULARY,
        context=CONTEXT,
        num_train=28 * 2**30 - 2**21,  # with a trial's validation split, 28 blocks of 2^30
        num_test=2**20,
        stream=True,
    ),
    SIZES,
)
CONFIG = RECIPE.runs.variants["12x768/DFA"]
