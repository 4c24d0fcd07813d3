"""EDM diffusion models in Equinox: every part of Karras et al. (2022), and the book about it.

Imports inside the package are relative and point one way, downwards, through these layers:

0. `_types`, `_checks`: what every file may use;
1. `schedules`, `grids`, `distributions`, `operators`, `networks`: mathematics without a denoiser
   around it;
2. `preconditioning`, `parameterisations`, `noise_levels`, `dynamics`, `losses`: the equations, and
   EDM2's own loss, `networks.edm2.loss`;
3. `denoiser`, `measured`, `adapters`, `solvers`, `sampling`, `likelihood`, `training`: what is run;
4. `designs`, `sbi`, `images`: whole recipes, and the U-Nets' official weights;
5. `book`: what only the chapters need. A copier leaves it behind.

`_deprecated` holds what version 0.1.0 called otherwise; the next release deletes it.

The subpackages `sbi`, `networks`, `training`, `images` and `book` are imported by name.
"""

from . import designs as designs
from ._deprecated import names as _names
from .adapters import from_ddpm as from_ddpm, from_flow_matching as from_flow_matching
from .denoiser import Denoiser as Denoiser, Guided as Guided, Pinned as Pinned
from .designs import Design as Design
from .distributions import (
    EmpiricalDenoiser as EmpiricalDenoiser,
    GaussianMixture as GaussianMixture,
)
from .dynamics import (
    forward_sde as forward_sde,
    probability_flow as probability_flow,
    reverse_sde as reverse_sde,
    score as score,
)
from .grids import (
    edm_sigmas as edm_sigmas,
    iddpm_sigmas as iddpm_sigmas,
    iddpm_table as iddpm_table,
    ve_sigmas as ve_sigmas,
    vp_sigmas as vp_sigmas,
)
from .likelihood import (
    Likelihood as Likelihood,
    bits_per_dim as bits_per_dim,
    log_likelihood as log_likelihood,
)
from .losses import (
    check_initial_loss as check_initial_loss,
    denoising_loss as denoising_loss,
    initial_loss as initial_loss,
    loss_by_sigma as loss_by_sigma,
    weighted_error as weighted_error,
)
from .measured import Linearised as Linearised, Measured as Measured
from .networks.mlp import MLP as MLP, Embedded as Embedded
from .noise_levels import (
    AbstractNoiseDistribution as AbstractNoiseDistribution,
    LogNormal as LogNormal,
    LogUniform as LogUniform,
    UniformLevels as UniformLevels,
    UniformTime as UniformTime,
)
from .operators import (
    blur as blur,
    downsample as downsample,
    inpaint as inpaint,
    partial_fourier as partial_fourier,
)
from .parameterisations import convert as convert
from .preconditioning import (
    AbstractPreconditioning as AbstractPreconditioning,
    Coefficients as Coefficients,
    EDMPreconditioning as EDMPreconditioning,
    IDDPMPreconditioning as IDDPMPreconditioning,
    VEPreconditioning as VEPreconditioning,
    VPPreconditioning as VPPreconditioning,
)
from .sampling import Churn as Churn, sample as sample, sample_path as sample_path
from .schedules import (
    AbstractSchedule as AbstractSchedule,
    Linear as Linear,
    Rounded as Rounded,
    Unscaled as Unscaled,
    VarianceExploding as VarianceExploding,
    VariancePreserving as VariancePreserving,
    VarianceScaled as VarianceScaled,
)
from .solvers import (
    ODE as ODE,
    AbstractSolver as AbstractSolver,
    DPMSolverPP2M as DPMSolverPP2M,
    Euler as Euler,
    Heun as Heun,
)
from .training.averages import (
    HalfLifeEMA as HalfLifeEMA,
    PowerEMA as PowerEMA,
    Snapshot as Snapshot,
    reconstruct as reconstruct,
)
from .training.loop import train as train
from .training.optimizers import (
    clean_gradients as clean_gradients,
    cleaned as cleaned,
    ramp_up as ramp_up,
)
from .training.sharding import data_parallel as data_parallel
from .training.state import TrainState as TrainState, init_state as init_state

_names.keep_old_names()
