"""How figures look: one colour and marker per learning rule, two themes."""

import zlib
from typing import Any, Literal, NamedTuple, get_args

Theme = Literal["light", "dark"]
THEMES: tuple[Theme, ...] = get_args(Theme)


class RuleStyle(NamedTuple):
    """How a learning rule is drawn, the same in every figure and page.

    Attributes:
        light: colour on white.
        dark: colour on near-black.
        marker: so that colour is never the only difference.
    """

    light: str
    dark: str
    marker: str


# Okabe and Ito's palette, which the common colour blindnesses keep apart; lighter on dark paper.
RULE_STYLES = {
    "backprop": RuleStyle("#1a1a1a", "#f2f2f2", "o"),
    "direct_feedback_alignment": RuleStyle("#0072b2", "#4db2ee", "s"),
    "feedback_alignment": RuleStyle("#d55e00", "#ff8a3d", "^"),
    "shallow": RuleStyle("#8a8a8a", "#9a9a9a", "D"),
    "direct_random_target_projection": RuleStyle("#009e73", "#2fd0a3", "v"),
    "kolen_pollack": RuleStyle("#cc79a7", "#e79cc5", "P"),
    "uniform_sign": RuleStyle("#56b4e9", "#8fd0f7", "X"),
    "fixed_random_sign": RuleStyle("#e69f00", "#ffbf3f", "<"),
    "batchwise_random_sign": RuleStyle("#a6761d", "#d0a04a", ">"),
    # The algorithms of Ren et al. (2023), by their names there.
    "BP": RuleStyle("#1a1a1a", "#f2f2f2", "o"),
    "L-BP": RuleStyle("#6b6b6b", "#b5b5b5", "o"),
    "LG-BP": RuleStyle("#a0a0a0", "#8a8a8a", "o"),
    "FA": RuleStyle("#d55e00", "#ff8a3d", "^"),
    "L-FA": RuleStyle("#e69f00", "#ffbf3f", "^"),
    "LG-FA": RuleStyle("#a6761d", "#d0a04a", "^"),
    "DFA": RuleStyle("#0072b2", "#4db2ee", "s"),
    "FG-W": RuleStyle("#cc79a7", "#e79cc5", "v"),
    "FG-A": RuleStyle("#009e73", "#2fd0a3", "D"),
    "LG-FG-W": RuleStyle("#882255", "#d9679b", "v"),
    "LG-FG-A": RuleStyle("#117733", "#5fc77f", "D"),
    # Where local losses sit, and into how many groups channels fall: from few losses to many.
    "one loss": RuleStyle("#8a8a8a", "#9a9a9a", "o"),
    "block": RuleStyle("#56b4e9", "#8fd0f7", "s"),
    "patch": RuleStyle("#e69f00", "#ffbf3f", "^"),
    "group": RuleStyle("#cc79a7", "#e79cc5", "v"),
    "block, patch": RuleStyle("#0072b2", "#4db2ee", "D"),
    "block, group": RuleStyle("#332288", "#9d8df1", "P"),
    "patch, group": RuleStyle("#882255", "#d9679b", "X"),
    "block, patch, group": RuleStyle("#117733", "#5fc77f", "*"),
    # Contrastive losses whose comparison is stopped or not, and whose noise is shared or not.
    "LG-BP, stopped": RuleStyle("#1a1a1a", "#f2f2f2", "o"),
    "LG-BP, not stopped": RuleStyle("#8a8a8a", "#9a9a9a", "o"),
    "shared noise, stopped": RuleStyle("#117733", "#5fc77f", "D"),
    "shared noise, not stopped": RuleStyle("#d55e00", "#ff8a3d", "D"),
    "own noise, stopped": RuleStyle("#0072b2", "#4db2ee", "^"),
    "own noise, not stopped": RuleStyle("#cc79a7", "#e79cc5", "^"),
    "1 group": RuleStyle("#8a8a8a", "#9a9a9a", "o"),
    "4 groups": RuleStyle("#56b4e9", "#8fd0f7", "s"),
    "16 groups": RuleStyle("#0072b2", "#4db2ee", "^"),
    "64 groups": RuleStyle("#332288", "#9d8df1", "v"),
    "128 groups": RuleStyle("#882255", "#d9679b", "D"),
    # Where a Transformer's errors arrive, and which error it is that is sent.
    "macro": RuleStyle("#0072b2", "#4db2ee", "s"),
    "micro": RuleStyle("#009e73", "#2fd0a3", "v"),
    "linear": RuleStyle("#cc79a7", "#e79cc5", "P"),
    "macro, last hidden": RuleStyle("#332288", "#9d8df1", "^"),
    "frozen blocks": RuleStyle("#e69f00", "#ffbf3f", "X"),
    # Where a gradient guess comes from, as in Fournier et al. (2023).
    "random": RuleStyle("#8a8a8a", "#9a9a9a", "o"),
    "random, weights": RuleStyle("#a6761d", "#d0a04a", "X"),
    "fixed": RuleStyle("#e69f00", "#ffbf3f", "^"),
    "reinitialised": RuleStyle("#0072b2", "#4db2ee", "v"),
    "local": RuleStyle("#117733", "#5fc77f", "D"),
}
SPARE = (
    RuleStyle("#332288", "#9d8df1", "p"),
    RuleStyle("#882255", "#d9679b", "h"),
    RuleStyle("#117733", "#5fc77f", "*"),
    RuleStyle("#999933", "#cfcf5a", "8"),
)
"""For rules that have no style of their own yet."""

PAPER = {"light": "#ffffff", "dark": "#15181d"}
INK = {"light": "#24292f", "dark": "#dfe3e8"}
GRID = {"light": "#e4e7eb", "dark": "#2c323a"}


def rule_style(rule: str) -> RuleStyle:
    """The rule's style; for an unlisted rule, one that its name always maps to."""
    return RULE_STYLES.get(rule) or SPARE[zlib.crc32(rule.encode()) % len(SPARE)]


def colour(rule: str, theme: Theme) -> str:
    """The rule's colour on a theme's paper."""
    return getattr(rule_style(rule), theme)


def label(name: str) -> str:
    """The name of a rule or variant for readers."""
    return name.replace("_", " ")


def settings(theme: Theme) -> dict[Any, Any]:
    """Matplotlib's rcParams."""
    ink, paper, grid = INK[theme], PAPER[theme], GRID[theme]
    return {
        "figure.facecolor": paper,
        "axes.facecolor": paper,
        "savefig.facecolor": paper,
        "text.color": ink,
        "axes.labelcolor": ink,
        "axes.titlecolor": ink,
        "xtick.color": ink,
        "ytick.color": ink,
        "axes.edgecolor": ink,
        "axes.linewidth": 0.8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": grid,
        "grid.linewidth": 0.8,
        "font.size": 11,
        "axes.titlesize": 12,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.titlepad": 10,
        "axes.labelsize": 11,
        "xtick.labelsize": 10,
        "ytick.labelsize": 10,
        "legend.frameon": False,
        "legend.fontsize": 10,
        "lines.linewidth": 1.8,
        "lines.markersize": 4.5,
    }
