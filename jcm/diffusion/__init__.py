"""The mathematics: noise levels, preconditioning, solvers, sampling and editing.

    from jcm import diffusion

    D = diffusion.Denoiser(network, diffusion.precond.EDM())
    f = diffusion.Denoiser(network, diffusion.precond.Consistency())
    grid = diffusion.KarrasGrid()  # noise levels
    sample = diffusion.Sampler(D, batch_size=64)
    images = sample(params, key, range(64), diffusion.ode_schedule(grid, 18, "heun"))

`Denoiser` is a network with a preconditioning. A `Schedule` has the noise levels that a
`Sampler` visits. The modules are `precond` (preconditionings), `schedules` (noise
levels and curricula), `ode` (steps of the ODE) and `edits` (what is known of an edited
image). A network comes from `jcm.networks`.
"""

from jcm.diffusion import edits as edits
from jcm.diffusion import ode as ode
from jcm.diffusion import precond as precond
from jcm.diffusion import schedules as schedules
from jcm.diffusion.denoiser import Denoiser as Denoiser
from jcm.diffusion.sampler import Sampler as Sampler
from jcm.diffusion.schedule import Schedule as Schedule
from jcm.diffusion.schedule import ode_schedule as ode_schedule
from jcm.diffusion.schedules import AdaptiveScales as AdaptiveScales
from jcm.diffusion.schedules import FixedScales as FixedScales
from jcm.diffusion.schedules import KarrasGrid as KarrasGrid

__all__ = [
    "AdaptiveScales",
    "Denoiser",
    "FixedScales",
    "KarrasGrid",
    "Sampler",
    "Schedule",
    "edits",
    "ode",
    "ode_schedule",
    "precond",
    "schedules",
]
