"""What a sweep will cost, and how far it is."""

import pathlib
from collections.abc import Iterable, Sequence

from dfa_jax.data import TextData
from dfa_jax.errors import InputError
from dfa_jax.models import Transformer
from dfa_jax.report import ladder, plan, sweep, text, tuning
from dfa_jax.report.recipe import Recipe
from dfa_jax.train.config import TrainConfig

TRIALS_A_VARIANT = 5  # about as many as the search for a rate needs
FLOPS_PER_SECOND = 2e10  # of one core of a server of 2022, with small networks


def planned(recipe: Recipe, *, flops_per_second: float = FLOPS_PER_SECOND) -> str:
    """A line a variant: its runs, tokens, FLOPs and hours, trials included; nothing is run.

    Args:
        recipe: with or without a search for learning rates.
        flops_per_second: of one worker, for the hours.
    """
    lines: list[Sequence[str]] = [("variant", "trials", "runs", "tokens", "FLOPs", "hours")]
    totals = [0.0, 0.0, 0.0, 0.0]
    runs = plan.plan(recipe)
    for variant in recipe.variants:
        of_variant = [one.config for one in runs if one.variant == variant]
        number = TRIALS_A_VARIANT if recipe.tuning else 0
        of_variant += number * [tuning.trial(recipe, f"{variant}@+0")] if number else []
        tokens = sum(num_tokens(one) for one in of_variant)
        spent = sum(run_flops(one) for one in of_variant)
        cells = (number, len(of_variant) - number, tokens, spent)
        totals = [total + cell for total, cell in zip(totals, cells, strict=True)]
        lines.append((variant, *_shown(cells, flops_per_second)))
    lines.append(("all", *_shown(totals, flops_per_second)))
    note = (
        f"FLOPs are matrix products, evaluations not counted; hours of one worker at"
        f" {flops_per_second:.3g} a second; about {TRIALS_A_VARIANT} trials a variant."
    )
    return f"{aligned(lines)}\n{note}"


def _shown(cells: Sequence[float], flops_per_second: float) -> tuple[str, ...]:
    trials, runs, tokens, spent = cells
    if not spent:  # no count is known
        return f"{trials:.0f}", f"{runs:.0f}", text.NOTHING, text.NOTHING, text.NOTHING
    hours = spent / flops_per_second / 3600
    return f"{trials:.0f}", f"{runs:.0f}", f"{tokens:.3g}", f"{spent:.3g}", f"{hours:.2f}"


def num_tokens(config: TrainConfig) -> float:
    """Of a run on text; 0 where nobody knows before the data is read."""
    return config.num_tokens if isinstance(config.data, TextData) else 0


def run_flops(config: TrainConfig) -> float:
    """Matrix-product FLOPs of a run, its decaying branches included; 0 where none are known."""
    if not (isinstance(config.model, Transformer) and isinstance(config.data, TextData)):
        return 0
    try:
        per_token = ladder.flops_a_token(config, "counted")
    except InputError:  # sites or a rule of one's own
        return 0
    return config.num_tokens * (1 + branches(config)) * per_token


def branches(config: TrainConfig) -> float:
    """Steps of all branches over those of the run."""
    steps = config.num_steps(1)
    ends = config.evaluation_steps(steps, max(1, steps))
    return config.decay_fraction * sum(ends) / steps


def status(recipe: Recipe, folder: pathlib.Path) -> str:
    """A line a variant: trials and runs that are done or under way, its rate, and its losses.

    Raises:
        InputError: the folder serves another grid.
    """
    sweep.open_folder(recipe, folder)
    seen = sweep.survey(recipe, folder)
    held = {job.name for job in seen.open if _is_held(folder, job)}
    lines = [("variant", "rate", "trials", "runs", "under way", "test losses")]
    for variant in recipe.variants:
        trials = [job for job in seen.done if job.name.startswith(f"trials/{variant}@")]
        runs = [job for job in seen.done if job.name.startswith(f"runs/{variant}/seed_")]
        losses = [seen.done[job] for job in runs]
        rates = [job.config.learning_rate for job in (*runs, *seen.open)
                 if job.name.startswith(f"runs/{variant}/")]  # fmt: skip
        under_way = [n for n in held if n.split("@")[0].split("/seed_")[0].endswith(f"/{variant}")]
        lines.append(
            (
                variant,
                _rate(rates[0]) if rates else "searched",
                str(len(trials)),
                f"{len(runs)} of {len(recipe.seeds)}",
                str(len(under_way)),
                " ".join(f"{r.final.test_loss:.4f}" if r.curve else "diverged" for r in losses),
            )
        )
    seconds = sum(record.wall_seconds for record in seen.done.values())
    total = f"{len(seen.done)} jobs done in {text.duration(seconds)}, {len(held)} under way"
    return f"{aligned(lines)}\n{total}, {len(seen.open) - len(held)} waiting."


def _rate(rate: float | None) -> str:
    return "its own" if rate is None else f"{rate:g}"


def _is_held(folder: pathlib.Path, job: sweep.Job) -> bool:
    """Whether a worker has it; to look is to hold the lock for a moment, which does no harm."""
    import filelock  # of an extra

    lock = sweep.lock(folder, job.name)
    try:
        with lock.acquire(blocking=False):
            return False
    except filelock.Timeout:
        return True


def aligned(lines: Iterable[Sequence[str]]) -> str:
    """Cells in columns, the first to the left and the others to the right."""
    rows = list(lines)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
