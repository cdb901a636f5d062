"""Loss against compute: decoder Transformers under BP, DFA and a shallow control.

Paper: Filipovich, Cappelli, Hesslow and Launay (2022), Scaling Laws Beyond Backpropagation, arXiv
    2210.14593
Command: python scripts/reproduce.py scaling_laws/frontier
Time: 240 min on 2 cores
Expect: at every budget BP has a lower loss than DFA, and DFA than the shallow control, whose blocks
    stay as they were drawn; and the gap grows with compute, so that DFA's cheaper backward pass
    never pays, under any way of counting it.

`python scripts/sweep.py scaling_laws/frontier` shares the runs out among any number of processes.

Six sizes, bytes of English documentation, one pass, a constant rate after a warm-up of 100 steps;
at every evaluation a branch of a tenth of the steps so far decays the rate to zero, and its loss is
what is fitted. For each size and arm its own learning rate, in factors of two, by the loss of 15 %
of a run on validation text; both neighbours of the best are known. Three seeds.

The paper's set-up is not known to us beyond the rule: Gaussian feedback of the error at the logits,
which all layers can share. What we chose for the rest, and why: sites behind each block, which did
best in Launay et al. (2020, arXiv 2006.12878), whose code is post-LN as well; the embedding learns
from what the first block hands down, as there; gradients are clipped at norm 1, Adam's second
moment decays by 0.98 (0.999 did no better for either arm in one-seed trials at 3 x 48).

`kernel_docs` is the documentation of Linux 6.1 as a TFDS set of 33.5 MB; any text set of that size
in `TFDS_DATA_DIR` will do in its place (`DATA` below), as `wiki40b/en`.
"""

from dfa_jax.data import TextData
from dfa_jax.models import Transformer
from dfa_jax.models.transformer import credit_sites
from dfa_jax.optim import Optimizer
from dfa_jax.report.recipe import Recipe, Tuning
from dfa_jax.rules import Backprop, DirectFeedbackAlignment, LearningRule, Shallow
from dfa_jax.train.config import TrainConfig

DATA = TextData("kernel_docs", context=128, num_test=32_768)
BATCH_SIZE, WARMUP_STEPS = 16, 100
SIZES = {  # layers, width: steps
    (2, 16): 1500,
    (2, 24): 1800,
    (2, 32): 2200,
    (3, 48): 2600,
    (3, 64): 3200,
    (4, 96): 4000,
}
ARMS: dict[str, LearningRule] = {
    "BP": Backprop(),
    "DFA": DirectFeedbackAlignment(feedback_sharing="shared"),
    "shallow": Shallow(),
}


def config(layers: int, width: int, rule: LearningRule) -> TrainConfig:
    """The run of one size under one rule."""
    model = Transformer(
        num_layers=layers,
        width=width,
        num_heads=max(1, width // 16),
        context=DATA.context,
        norm="post",
    )
    steps = SIZES[layers, width]
    return TrainConfig(
        data=DATA,
        model=model,
        sites=credit_sites(model, "macro"),
        rule=rule,
        optimizer=Optimizer(
            "adam",
            learning_rate=4e-3,
            b2=0.98,
            clip_norm=1.0,
            warmup_fraction=round(WARMUP_STEPS / steps, 4),
        ),
        batch_size=BATCH_SIZE,
        num_tokens=steps * BATCH_SIZE * DATA.context,
        log_evaluations=24,
        decay_fraction=0.1,
        alignment_examples=0,
    )


RUNS = Recipe(
    title="Loss against compute: decoder Transformers under BP, DFA and a shallow control",
    paper="Filipovich, Cappelli, Hesslow and Launay (2022), Scaling Laws Beyond Backpropagation,"
    " arXiv 2210.14593",
    minutes=240,
    variants={
        f"{layers}x{width}/{arm}": config(layers, width, rule)
        for layers, width in SIZES
        for arm, rule in ARMS.items()
    },
    seeds=(0, 1, 2),
    tuning=Tuning(num_validation=65_536, fraction=0.15, factor=2.0),
)
