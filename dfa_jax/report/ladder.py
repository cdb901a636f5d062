"""From records of language models to points of scaling laws, under every way of counting compute.

| convention | a run's FLOPs |
| --- | --- |
| `counted` | matrix products of one gradient estimate, from the structure (`scaling.flops`) |
| `6ND` | 6 N D for every arm: no arm has a discount |
| `4ND` | as `6ND`, but arms that send errors directly pay 4 N D: no gradients of activities |
| `2ND` | likewise 2 N D: the whole backward pass is free |

N are the weights of the matrices in blocks and unembedding, D the tokens, those of a decaying
branch included where its loss is taken.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

from dfa_jax import optim
from dfa_jax.data import MarkovData, TextData
from dfa_jax.errors import InputError
from dfa_jax.models import Transformer
from dfa_jax.models.transformer import granularity_of
from dfa_jax.report.recipe import group_of, label_of
from dfa_jax.rules import DirectFeedbackAlignment, Shallow
from dfa_jax.scaling import Run, flops
from dfa_jax.train.config import TrainConfig
from dfa_jax.train.records import Evaluation, RunRecord

Counting = Literal["counted", "6ND", "4ND", "2ND"]
COUNTINGS: tuple[Counting, ...] = get_args(Counting)

_DIRECT = (DirectFeedbackAlignment, Shallow)  # no error passes from block to block


def points(
    variants: Mapping[str, TrainConfig],
    held: Sequence[RunRecord],
    counting: Counting,
) -> list[Run]:
    """Every evaluation behind a run's warm-up as a point, with its branch's loss if it has one.

    Args:
        variants: the runs' configurations by label, `size/arm`.
        held: the records.
        counting: the convention.
    """
    return [
        _point(variants[record.variant], record, one, counting)
        for record in held
        for one in record.curve
        if one.step >= warmup_steps(variants[record.variant], record)
    ]


def warmup_steps(config: TrainConfig, record: RunRecord) -> int:
    """Steps over which the rate of a run rose."""
    return round(config.optimizer.warmup_fraction * record.num_steps)


def _point(
    config: TrainConfig,
    record: RunRecord,
    one: Evaluation,
    counting: Counting,
) -> Run:
    model, data = config.model, config.data
    assert isinstance(model, Transformer)
    assert isinstance(data, TextData | MarkovData)
    decays = "decayed_test_loss" in one.metrics
    steps = one.step + (int(one.metrics["decayed_steps"]) if decays else 0)
    num_tokens = steps * config.batch_size * data.context
    num_params = weights(model)
    return Run(
        arm=label_of(record.variant),
        size=group_of(record.variant),
        num_params=num_params,
        num_tokens=num_tokens,
        flops=num_tokens * flops_a_token(config, counting),
        loss=one.metrics["decayed_test_loss"] if decays else one.test_loss,
        seed=record.seed,
    )


def flops_a_token(config: TrainConfig, counting: Counting) -> float:
    """FLOPs of a training step over its tokens, by a convention.

    Raises:
        InputError: to be counted, and its sites are none that `credit_sites` gives.
    """
    model = config.model
    assert isinstance(model, Transformer)
    if counting == "counted":
        return _counted(config, model)
    has_discount = isinstance(config.rule, _DIRECT)
    return flops.conventional(counting if has_discount else "6ND", weights(model), 1)


def _counted(config: TrainConfig, model: Transformer) -> float:
    """Matrix products, a token."""
    data = config.data
    assert isinstance(data, TextData | MarkovData)
    options = granularity_of(model, config.sites)
    if options is None:
        raise InputError(
            f"sites are {config.sites}; FLOPs are counted for those of `credit_sites` alone"
        )
    granularity, embedding = options
    block = "blocks" if model.scan else "block_0"
    found = flops.count(
        model,
        config.rule,
        batch=1,
        time=data.context,
        granularity=granularity,
        embedding=embedding,
        frozen_blocks=any(optim.begins((block,), p) for p in config.optimizer.frozen),
    )
    return found.per_token


def weights(model: Transformer) -> int:
    """N: numbers in the matrices of the blocks and of the unembedding.

    >>> weights(Transformer(num_layers=2, width=4, num_outputs=10))
    424
    """
    block = (4 + 2 * model.mlp_factor) * model.width**2
    return model.num_layers * block + model.width * model.num_outputs
