"""Loss against compute at the paper's scale: 23M to 110M weights on English Wikipedia.

Paper: Filipovich, Cappelli, Hesslow and Launay (2022), Scaling Laws Beyond Backpropagation, arXiv
    2210.14593
Command: python scripts/reproduce.py scaling_laws/pod/frontier_wiki40b
Time: 1.2e+07 min on 2 cores, counted and not run
Expect: as `scaling_laws/frontier`.

All of it is 2.9e19 FLOPs as `scaling.flops` counts them: 24 minutes on a TPU v5e-256 that sustains
40 % of its peak of 197e12 FLOP/s a chip, 13 hours on eight chips. We have not run it.

As `scaling_laws/pod/frontier_c4`, with the sizes for which 20 tokens a weight are not much more
than one pass over TFDS `wiki40b/en`; no run is longer than 2e9 tokens, which is about what we take
the set to hold (if it holds less, a run begins again).
"""

from dfa_jax.data import TextData
from dfa_jax.report import catalogue

C4 = catalogue.run_file("scaling_laws/pod/frontier_c4")

RECIPE = C4["study"](
    "Loss against compute on English Wikipedia, at the paper's scale",
    1.2e7,
    TextData(
        "wiki40b/en",
        tokenizer="bpe",
        vocab_size=C4["VOCABULARY"],
        context=C4["CONTEXT"],
        num_test=2**20,
        stream=True,
    ),
    C4["SIZES"][:4],
    2e9,
)
CONFIG = RECIPE.runs.variants["12x768/DFA"]
