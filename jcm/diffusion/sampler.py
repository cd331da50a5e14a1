"""Samples consistency models in any number of steps, and diffusion models by their ODE.

A step is one compiled function of traced noise levels, called in a loop on the host, so
every list of noise levels, of any length, runs the same program. A program is compiled
for each of a few batch sizes only, which every number of images is padded to. Each
image has its own key, derived from its number with `fold_in`, so an image does not
depend on the batch that it is in.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, Key, UInt32

from jcm.diffusion.denoiser import Denoiser
from jcm.diffusion.schedule import Schedule
from jcm.networks import Params
from jcm.runtime import arrays
from jcm.runtime.arrays import AnyArray, check_floats

Callback = Callable[[int, float, Float[np.ndarray, "b h w c"]], Any]
"""A function of (step, sigma, images), called after each step of each batch.

`step` counts from 1; `sigma` is the noise level at which the step begins. `images` are
the clean images that a consistency model makes in this step, or the points on the
trajectory that the step of a diffusion model leads to, at the next lower noise level.
"""


# The mesh of pmap has the same axis as that of `Sampler.place`.
_AXIS = "local"
# A batch size has this many times the images of the next smaller one.
_GROWTH = 8
# Batches are filled up to at most this many times the number of images. A larger batch
# takes an accelerator hardly longer, and a CPU in proportion to its images.
_FILLED, _FILLED_ON_CPU = 2.0, 1.25


class Sampler:
    """The compiled sampler of one denoiser on this process's devices.

    By default `jax.pmap` puts a full copy of the parameters on every local device, and
    processes do not communicate. With a `sharding`, the same functions run under
    `jax.jit` on a global batch, for parameters that are themselves sharded. All
    processes must then call the sampler together, with the same number of images.

    Attributes:
      denoiser: D or f.
      batch_size: largest number of images at a time on this process's devices.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        batch_size: int = 64,
        sharding: NamedSharding | None = None,
    ):
        """Creates the sampler, which compiles when it is first called.

        Args:
          denoiser: D or f.
          batch_size: largest number of images at a time on this process's devices;
            rounded up to a multiple of their number.
          sharding: how a global batch is split; None for pmap.
        """
        self.denoiser = denoiser
        self._sharding = sharding
        self._devices = jax.local_device_count()
        local = Mesh(np.asarray(jax.local_devices()), (_AXIS,))
        self._everywhere = NamedSharding(local, PartitionSpec())
        self.batch_size = -(-batch_size // self._devices) * self._devices
        on_cpu = jax.local_devices()[0].platform == "cpu"
        self._filled = _FILLED_ON_CPU if on_cpu else _FILLED
        self._sizes = [self.batch_size]
        size = self._devices
        while size < self.batch_size:
            self._sizes.append(size)
            size *= _GROWTH
        # For pmap: 0 splits an argument over the devices, None gives it to all.
        self._start = self._parallel(self._start_fn, in_axes=(None, 0, 0, None))
        self._denoise = self._parallel(denoiser, in_axes=(None, 0, 0, 0))
        step_axes = (None, 0, None, 0, None, None, None, 0, 0)
        self._steps = {
            solver: self._parallel(
                functools.partial(self._step_fn, solver=solver), step_axes
            )
            for solver in denoiser.precond.solvers
        }

    def __call__(
        self,
        params: Params,
        key: Key[Array, ""],
        indices: Sequence[int] | Int[np.ndarray, " n"],
        schedule: Schedule,
        labels: Sequence[int] | Int[AnyArray, " n"] | None = None,
        *,
        origin: Float[AnyArray, "n h w c"] | None = None,
        known: Any = None,
        noisy: bool = True,
        callback: Callback | None = None,
        progress: Callable[[int], Any] | None = None,
    ) -> Float[np.ndarray, "n h w c"]:
        """Samples the images with the given numbers.

        Args:
          params: parameters of the denoiser.
          key: determines all images, together with their numbers.
          indices: number of each image; the same number gives the same image.
          schedule: noise levels and solver.
          labels: class of each image; None if the denoiser is unconditional.
          origin: images that the first noise is added to; None for zeros.
          known: puts back what is known after each step, for samplers that make clean
            images: a pytree of arrays with one entry per image, callable on images.
          noisy: whether to add the first noise; if not, sampling starts at `origin`.
          callback: called after each step of each batch; see `Callback`.
          progress: called with the number of images of a batch after each of its steps.
            No device waits for it.

        Returns:
          Images in about [-1, 1]; `images.to_uint8` clips and rounds them.

        Raises:
          JcmError: if the labels do not fit the denoiser, or `origin` is not of floats.
        """
        check_floats("origin", origin)
        indices = np.asarray(indices, np.uint32)
        count, size = len(indices), self._batch_size(len(indices))
        labels = self.denoiser.as_labels(labels, count)
        params = self.place(params)  # otherwise every step would copy them
        # Folded in by the compiled programs, since single operations take longer.
        data = np.asarray(jax.random.key_data(key))
        levels = [level for level, *_ in schedule.steps(self.denoiser.precond.floor)]
        finished: list[np.ndarray] = []
        x: Array | None = None
        running: tuple[Array, int] | None = None
        for start in range(0, count, size):
            numbers, *given = jax.tree.map(
                functools.partial(_part, start=start, size=size),
                (indices, labels, origin, known),
            )
            previous = x
            steps = self._one_batch(
                params, data, numbers, schedule, *given, noisy=noisy
            )
            for step, stepped in enumerate(steps, start=1):
                x, clean = stepped
                if callback is not None:
                    images = self._join(clean)[: count - start]
                    callback(step, levels[step - 1], images)
                if progress is not None:
                    # Wait for the step before, while the devices compute this one.
                    _report(running, progress)
                    running = clean, min(size, count - start)
            # Fetch the images only now, while the devices work on the next batch.
            if previous is not None:
                finished.append(self._join(previous))
        if x is not None:
            finished.append(self._join(x))
        made = np.concatenate(finished)[:count]
        if progress is not None:
            _report(running, progress)
        return made

    def place(self, params: Params) -> Params:
        """Copies parameters to every device, for any number of calls.

        Parameters that are there are returned unchanged. With a `sharding`, all are.
        """
        leaves = jax.tree.leaves(params)
        if self._sharding is not None or all(
            isinstance(leaf, jax.Array) and leaf.sharding == self._everywhere
            for leaf in leaves
        ):
            return params
        return jax.device_put(arrays.process_local(params), self._everywhere)

    def denoise(
        self,
        params: Params,
        x: Float[np.ndarray, "n h w c"],
        sigma: Float[np.ndarray, " n"],
        labels: Int[AnyArray, " n"] | None = None,
    ) -> Float[np.ndarray, "n h w c"]:
        """Returns D(x, sigma) or f(x, sigma), as `Denoiser` does, for any n.

        Args:
          params: parameters of the denoiser.
          x: noisy images.
          sigma: noise level of each image.
          labels: class of each image; None if the denoiser is unconditional.
        """
        count, size = len(x), self._batch_size(len(x))
        params = self.place(params)
        made = []
        for start in range(0, count, size):
            part = functools.partial(_part, start=start, size=size)
            given = jax.tree.map(self._split, jax.tree.map(part, (x, sigma, labels)))
            made.append(self._denoise(params, *given))
        return np.concatenate([self._join(each) for each in made])[:count]

    def _batch_size(self, count: int) -> int:
        """Returns the batch size for `count` images.

        It is the largest that fills up few images, for one call is faster than several.
        The batch sizes are few, so that another number of images rarely needs another
        program.
        """
        filled = {size: -(-count // size) * size for size in self._sizes}
        most = max(self._filled * count, min(filled.values()))
        return max(size for size in self._sizes if filled[size] <= most)

    def _one_batch(
        self,
        params: Params,
        key: UInt32[np.ndarray, " k"],
        numbers: UInt32[np.ndarray, " b"],
        schedule: Schedule,
        labels: Int[np.ndarray, " b"] | None,
        origin: Float[np.ndarray, "b h w c"] | None,
        known: Any,
        *,
        noisy: bool,
    ) -> Iterator[tuple[Array, Array]]:
        """Yields a batch on the devices after each step, and its clean images."""
        numbers, labels, origin, known = jax.tree.map(
            self._split, (numbers, labels, origin, known)
        )
        start = schedule.sigmas[0] if noisy else 0.0
        x = self._start(key, numbers, origin, np.float32(start))
        steps = schedule.steps(self.denoiser.precond.floor)
        for i, (sigma, sigma_next, solver) in enumerate(steps, start=1):
            levels = np.float32(sigma), np.float32(sigma_next)
            x, clean = self._steps[solver](
                params, x, key, numbers, np.uint32(i), *levels, labels, known
            )
            yield x, clean

    def _start_fn(
        self, key: Array, numbers: Array, origin: Array | None, sigma: Array
    ) -> Array:
        noise = self.denoiser.precond.start(self._noise(key, numbers, 0), sigma)
        return noise if origin is None else origin + noise

    def _step_fn(
        self,
        params: Params,
        x: Array,
        key: Array,
        numbers: Array,
        i: Array,
        sigma: Array,
        sigma_next: Array,
        labels: Array | None,
        known: Any,
        *,
        solver: str,
    ) -> tuple[Array, Array]:
        network = self.denoiser.raw(params, labels)
        return self.denoiser.precond.step(
            network,
            x,
            sigma,
            sigma_next,
            self._noise(key, numbers, i),
            solver=solver,
            restore=known,
        )

    def _noise(self, key: Array, numbers: Array, draw: Array | int) -> Array:
        """Returns draw number `draw` of the noise of each image."""
        of_all = jax.random.wrap_key_data(key)

        def one(number: Array) -> Array:
            its_key = jax.random.fold_in(of_all, number)
            drawn = jax.random.fold_in(its_key, draw)
            return jax.random.normal(drawn, self.denoiser.image_shape)

        return jax.vmap(one)(numbers)

    def _parallel(self, fn: Callable, in_axes: tuple[int | None, ...]) -> Callable:
        """Returns `fn` compiled to run on all devices at once."""
        if self._sharding is not None:
            return jax.jit(fn, out_shardings=self._sharding)
        return jax.pmap(fn, _AXIS, in_axes=in_axes)

    def _split(self, batch: AnyArray) -> AnyArray:
        """Spreads this process's batch over the devices."""
        if self._sharding is not None:
            return jax.make_array_from_process_local_data(
                self._sharding, np.asarray(batch)
            )
        return batch.reshape(self._devices, -1, *batch.shape[1:])

    def _join(self, x: Array) -> np.ndarray:
        """Fetches this process's images, in order."""
        if self._sharding is None:
            return np.asarray(x).reshape(-1, *x.shape[2:])
        shards = {
            shard.index[0].start or 0: shard.data for shard in x.addressable_shards
        }
        return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])


def _report(running: tuple[Array, int] | None, progress: Callable[[int], Any]) -> None:
    """Waits until a step is done, and reports the number of its images."""
    if running is not None:
        clean, count = running
        clean.block_until_ready()
        progress(count)


def _part(array: AnyArray, *, start: int, size: int) -> np.ndarray:
    """Returns `size` entries from `start` on; after the end, the last is repeated."""
    part = np.asarray(array)[start : start + size]
    missing = size - len(part)
    if not missing:
        return part
    return np.concatenate([part, np.repeat(part[-1:], missing, axis=0)])
