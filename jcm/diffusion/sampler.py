"""Samplers: consistency models in any number of steps, diffusion models by ODE.

A step is one compiled function of traced noise levels, called in a loop on the host:
every list of noise levels, of any length, runs the same program. Each image has a
key of its own, so an image does not depend on the batch it is made in.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, Key, UInt8

from jcm.data import images as images_lib
from jcm.diffusion import ode, schedules
from jcm.diffusion.denoiser import Denoiser
from jcm.networks import Params
from jcm.runtime import arrays
from jcm.runtime.arrays import AnyArray, as_key
from jcm.runtime.errors import JcmError


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The noise levels a sampler visits, and how it goes from one to the next.

    Attributes:
      sigmas: descending, the first is where the noise starts. An ODE solver may end
        with 0.
      solver: "consistency", or an ODE solver: "heun", "euler".
    """

    sigmas: tuple[float, ...]
    solver: str = "consistency"

    @property
    def nfe(self) -> int:
        """Network evaluations for one image."""
        if self.solver == "consistency":
            return len(self.sigmas)
        steps = len(self.sigmas) - 1
        return 2 * steps - (self.sigmas[-1] == 0) if self.solver == "heun" else steps

    @property
    def title(self) -> str:
        """For captions and tables."""
        if self.solver == "consistency":
            return f"{self.nfe} step" + "s" * (self.nfe > 1)
        return f"{self.solver.capitalize()}, {self.nfe} evaluations"

    def check(self, sigma_min: float, sigma_max: float) -> None:
        """Raises JcmError unless the levels descend within the model's range."""
        levels = self.sigmas
        if self.solver != "consistency":
            ode.check_solver(self.solver, "solver")
            levels = levels[:-1] if levels and levels[-1] == 0 else levels
        if not levels:
            raise JcmError(f"sigmas={self.sigmas}: at least one noise level is needed")
        # Written so that NaN is refused as well.
        if not all(a > b for a, b in zip(levels, levels[1:], strict=False)):
            raise JcmError(f"sigmas={self.sigmas} must descend")
        if not (sigma_max >= levels[0] and levels[-1] >= sigma_min):
            raise JcmError(
                f"sigmas={self.sigmas} must lie within the model's noise levels,"
                f" {sigma_min} to {sigma_max}"
            )


def ode_schedule(grid: schedules.KarrasGrid, steps: int, solver: str) -> Schedule:
    """The EDM sampler: `steps` levels of the rho-grid, then 0.

    The last step is Euler's to 0, so Heun needs 2 steps - 1 evaluations.

    Raises:
      JcmError: for fewer than two steps.
    """
    if steps < 2:
        raise JcmError(f"steps={steps} must be at least 2")
    return Schedule((*grid.sigmas(steps), 0.0), solver)


def consistency_step(
    model: Denoiser,
    params: Params,
    x: Float[Array, "b h w c"],
    sigma: Float[Array, ""],
    sigma_next: Float[Array, ""],
    noise: Float[Array, "b h w c"],
    labels: Int[Array, " b"] | None,
    known: Callable[[Array], Array] | None = None,
) -> tuple[Float[Array, "b h w c"], Float[Array, "b h w c"]]:
    """One round of multistep sampling or editing (Song et al. 2023, Algorithms 1, 4).

    Jumps to clean images, clips them to [-1, 1], puts back what is known of them, and
    puts noise back on.

    Args:
      model: f.
      params: its parameters.
      x: images at noise level sigma.
      sigma: where they are.
      sigma_next: where they shall be; at sigma_min the clean images come back as
        they are.
      noise: standard normal.
      labels: classes, or None.
      known: puts back what is known, such as `editing.Known`.

    Returns:
      Images at noise level sigma_next, and the clean ones.
    """
    x0 = model(params, x, jnp.full(x.shape[0], sigma), labels)
    x0 = jnp.clip(x0, -1.0, 1.0)
    if known is not None:
        x0 = known(x0)
    # As a product it is exactly 0 at sigma_min.
    sigma_min = jnp.float32(model.precond.sigma_min)
    variance = (sigma_next - sigma_min) * (sigma_next + sigma_min)
    return x0 + jnp.sqrt(jnp.maximum(variance, 0.0)) * noise, x0


def ode_step(
    model: Denoiser,
    params: Params,
    x: Float[Array, "b h w c"],
    sigma: Float[Array, ""],
    sigma_next: Float[Array, ""],
    labels: Int[Array, " b"] | None,
    *,
    solver: str,
) -> Float[Array, "b h w c"]:
    """One step of the diffusion model's ODE; see `ode.step`."""
    levels = (jnp.full(x.shape[0], level) for level in (sigma, sigma_next))
    return ode.step(
        lambda point, level: model(params, point, level, labels),
        x,
        *levels,
        solver=solver,
    )


class Sampler:
    """Compiled samplers of one model on this process's devices.

    By default `jax.pmap` puts a full copy of the parameters on every local device,
    and processes do not talk to each other. With a `sharding` the same functions run
    under `jax.jit` on a global batch, for parameters that are sharded themselves;
    then all processes must call together, with equally many images.
    """

    def __init__(
        self,
        model: Denoiser,
        *,
        batch_size: int = 64,
        sharding: NamedSharding | None = None,
    ):
        """Compiles nothing yet.

        Args:
          model: f or D.
          batch_size: images at a time over this process's devices, at most; rounded
            up to a multiple of them.
          sharding: how to split a global batch; None for pmap.
        """
        self.model = model
        self._sharding = sharding
        self._devices = jax.local_device_count()
        local = Mesh(np.asarray(jax.local_devices()), ("local",))
        self._everywhere = NamedSharding(local, PartitionSpec())
        self.batch_size = -(-batch_size // self._devices) * self._devices
        # For pmap: 0 splits an argument over the devices, None gives it to all.
        self._start = self._parallel(self._start_fn, in_axes=(0, 0, None))
        step_axes = (None, 0, 0, None, None, None, 0, 0)
        self._steps = {"consistency": self._parallel(self._consistency_fn, step_axes)}
        for solver in ode.SOLVERS:
            step = functools.partial(self._ode_fn, solver=solver)
            self._steps[solver] = self._parallel(step, step_axes)

    def __call__(
        self,
        params: Params,
        key: Key[Array, ""],
        indices: Sequence[int] | Int[np.ndarray, " n"],
        schedule: Schedule,
        labels: Sequence[int] | None = None,
        *,
        origin: Float[AnyArray, "n h w c"] | None = None,
        known: Any = None,
        noisy: bool = True,
        visit: Callable[[Float[np.ndarray, "b h w c"]], None] | None = None,
    ) -> Float[np.ndarray, "n h w c"]:
        """Makes the images with the given numbers.

        Args:
          params: of the model.
          key: seed of the whole collection of images.
          indices: number of each image in it; the same number is the same image.
          schedule: noise levels and solver.
          labels: class of each image; None for an unconditional model.
          origin: images that the first noise is added to; None for zeros.
          known: what is put back after each step of a consistency model: a tree of
            arrays, each with an entry per image, that is called with images.
          noisy: add the first noise; without it `origin` is where sampling starts.
          visit: called after each step of each batch with its clean images, or, for
            a diffusion model, with where it is.

        Returns:
          Images in about [-1, 1]; `images.to_uint8` clips and rounds.

        Raises:
          JcmError: for labels where the model has no classes, and the reverse.
        """
        indices = np.asarray(indices, np.uint32)
        batch_size = self._batch_size(len(indices))
        if self._sharding is None:
            # Once here, or every step would copy them to every device.
            params = jax.device_put(arrays.local(params), self._everywhere)
        labels = check_labels(self.model, labels, len(indices))
        made, x = [], None
        for start in range(0, len(indices), batch_size):
            chunk = slice(start, start + batch_size)
            padding = (0, batch_size - len(indices[chunk]))
            keys = jax.vmap(functools.partial(jax.random.fold_in, key))(
                np.pad(indices[chunk], padding)
            )

            def part(array, chunk=chunk, padding=padding):
                rest = [(0, 0)] * (array.ndim - 1)
                return np.pad(np.asarray(array[chunk]), [padding, *rest])

            given = jax.tree.map(part, (labels, origin, known))
            before = x  # is fetched while the devices have this batch to do
            for step in self._one_batch(params, keys, schedule, *given, noisy=noisy):
                x, clean = step
                if visit is not None:
                    visit(self._join(clean)[: len(indices) - start])
            if before is not None:
                made.append(self._join(before))
        return np.concatenate([*made, self._join(x)])[: len(indices)]

    def _batch_size(self, count: int) -> int:
        """Of a call: a few images need no full batch; powers of two compile rarely."""
        few = 1 << max(count - 1, 0).bit_length()
        return min(self.batch_size, -(-few // self._devices) * self._devices)

    def pixels(
        self,
        params: Params,
        seed: int,
        indices: Sequence[int],
        schedule: Schedule,
        labels: Sequence[int] | None = None,
    ) -> UInt8[np.ndarray, "n h w c"]:
        """Pixels of images made by all processes together, each its share.

        Every process must call; every process gets all images. See `__call__`.

        Raises:
          JcmError: also for an image that is not finite, in every process.
        """
        processes, count = jax.process_count(), len(indices)
        # Equal shares, as collective calls need; the surplus is thrown away.
        share = -(-count // processes)
        mine = (jax.process_index() * share + np.arange(share)) % max(count, 1)
        made = self(
            params,
            as_key(seed),
            [indices[i] for i in mine],
            schedule,
            None if labels is None else [labels[i] for i in mine],
        )
        finite = np.isfinite(made).all(axis=(1, 2, 3))
        made = images_lib.to_uint8(np.nan_to_num(made))
        if processes > 1:
            made, finite = multihost_utils.process_allgather((made, finite), tiled=True)
        broken = np.flatnonzero(~finite[:count])
        if len(broken):
            raise JcmError(
                f"image {indices[broken[0]]} of seed {seed}, {schedule.title}, is not"
                " finite: take an earlier checkpoint"
            )
        return np.asarray(made)[:count]

    def _one_batch(
        self,
        params: Params,
        keys: Key[Array, " b"],
        schedule: Schedule,
        labels: Int[np.ndarray, " b"] | None,
        origin: Float[np.ndarray, "b h w c"] | None,
        known: Any,
        *,
        noisy: bool,
    ) -> Iterator[tuple[Array, Array]]:
        """A full batch, noise to images, step by step."""
        keys = self._split(jax.random.key_data(keys))
        labels, origin, known = jax.tree.map(self._split, (labels, origin, known))
        sigmas = [np.float32(sigma) for sigma in schedule.sigmas]
        x = self._start(keys, origin, sigmas[0] if noisy else np.float32(0))
        if schedule.solver == "consistency":
            ends = [*sigmas[1:], np.float32(self.model.precond.sigma_min)]
            pairs = list(zip(sigmas, ends, strict=True))
        else:
            pairs = list(zip(sigmas, sigmas[1:], strict=False))
        for i, (sigma, sigma_next) in enumerate(pairs, start=1):
            # A slope at noise level 0 does not exist: the last step is Euler's.
            solver = "euler" if sigma_next == 0 else schedule.solver
            x, clean = self._steps[solver](
                params, x, keys, np.uint32(i), sigma, sigma_next, labels, known
            )
            yield x, clean

    def _start_fn(self, keys: Array, origin: Array | None, sigma: Array) -> Array:
        noise = sigma * self._noise(keys, 0)
        return noise if origin is None else origin + noise

    def _consistency_fn(
        self, params, x, keys, i, sigma, sigma_next, labels, known
    ) -> tuple[Array, Array]:
        noise = self._noise(keys, i)
        return consistency_step(
            self.model, params, x, sigma, sigma_next, noise, labels, known
        )

    def _ode_fn(self, params, x, keys, i, sigma, sigma_next, labels, known, *, solver):
        del keys, i, known
        x = ode_step(self.model, params, x, sigma, sigma_next, labels, solver=solver)
        return x, x

    def _noise(self, keys: Array, draw: Array | int) -> Array:
        """Noise number `draw` of each image."""
        arch = self.model.network.arch
        shape = (arch.image_size, arch.image_size, arch.image_channels)

        def one(data: Array) -> Array:
            key = jax.random.fold_in(jax.random.wrap_key_data(data), draw)
            return jax.random.normal(key, shape)

        return jax.vmap(one)(keys)

    def _parallel(self, fn: Callable, in_axes: tuple[int | None, ...]) -> Callable:
        """`fn` over the devices."""
        if self._sharding is not None:
            return jax.jit(fn, out_shardings=self._sharding)
        return jax.pmap(fn, in_axes=in_axes)

    def _split(self, batch: Array | np.ndarray | None) -> Array | np.ndarray | None:
        """This process's batch, spread over the devices."""
        if batch is None:
            return None
        if self._sharding is not None:
            return jax.make_array_from_process_local_data(
                self._sharding, np.asarray(batch)
            )
        return batch.reshape(self._devices, -1, *batch.shape[1:])

    def _join(self, x: Array) -> np.ndarray:
        """This process's images, in order."""
        if self._sharding is None:
            return np.asarray(x).reshape(-1, *x.shape[2:])
        shards = {
            shard.index[0].start or 0: shard.data for shard in x.addressable_shards
        }
        return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])


def check_labels(
    model: Denoiser, labels: Sequence[int] | AnyArray | None, count: int
) -> Int[AnyArray, " n"] | None:
    """Labels of `count` images as an array, or None for an unconditional model.

    Raises:
      JcmError: for labels where the model has no classes, the reverse, or labels that
        it does not know.
    """
    classes = model.network.arch.num_classes
    if labels is None and not classes:
        return None
    if not classes:
        raise JcmError("labels were given, but the model has no classes: drop them")
    if labels is None:
        raise JcmError(f"labels are needed: the model has {classes} classes")
    if isinstance(labels, jax.core.Tracer):  # its numbers are not known
        return labels.astype(np.int32)
    labels = np.asarray(labels)
    if labels.dtype.kind not in "iu":
        raise JcmError(f"labels must be whole numbers, got {labels}")
    labels = labels.astype(np.int32)
    if labels.shape != (count,) or labels.min() < 0 or labels.max() >= classes:
        raise JcmError(
            f"labels must be {count} numbers from 0 to {classes - 1}, got {labels}"
        )
    return labels
