"""The trainer: one pure step for every rule, and the loop around it."""

from dfa_jax.train.config import TrainConfig as TrainConfig
from dfa_jax.train.given import Calling as Calling
from dfa_jax.train.loop import Result as Result
from dfa_jax.train.loop import fit as fit
from dfa_jax.train.probe import Probe as Probe
from dfa_jax.train.probe import linear_probe as linear_probe
from dfa_jax.train.readout import OnlineReadout as OnlineReadout
from dfa_jax.train.records import Evaluation as Evaluation
from dfa_jax.train.records import RunRecord as RunRecord
from dfa_jax.train.state import TrainState as TrainState
from dfa_jax.train.state import init_state as init_state
from dfa_jax.train.step import train_step as train_step
