"""Training: the loop, batches, averages of the weights, optimizers, sharding, checkpoints."""

from .averages import (
    AbstractEMA as AbstractEMA,
    HalfLifeEMA as HalfLifeEMA,
    PowerEMA as PowerEMA,
    Snapshot as Snapshot,
    reconstruct as reconstruct,
)
from .loop import (
    BatchLoss as BatchLoss,
    NonFiniteLossWarning as NonFiniteLossWarning,
    train as train,
)
from .memory import step_memory as step_memory
from .optimizers import clean_gradients as clean_gradients, cleaned as cleaned, ramp_up as ramp_up
from .sharding import data_parallel as data_parallel
from .state import TrainState as TrainState, init_state as init_state
