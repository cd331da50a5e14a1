"""What jcm and PyTorch are compared on: a config of jcm, described for PyTorch."""

import dataclasses
import json
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import running
from ml_collections import ConfigDict

from jcm import config as config_lib
from jcm import methods, networks
from jcm.commands.benchmark import speed
from jcm.methods import Batch, Frozen, consistency
from jcm.metrics import weights
from jcm.model import build
from jcm.networks import Conditions
from jcm.runtime import flops

# The number of classes of a class-conditional network, as in ImageNet.
_CLASSES = 1000
# As many images as the comparison of outputs needs.
_COMPARED = 4


def describe(config: ConfigDict) -> dict[str, Any]:
    """Returns what `torch_step.Training` needs to know of a config, as plain data."""
    network = build.network(config, _CLASSES)
    arch, loss, optim = network.arch, config.loss, config.optim
    fields = {f.name: getattr(arch, f.name) for f in dataclasses.fields(arch)}
    schedules = build.default_schedules(config, methods.denoiser(config, network))
    return {
        "method": config.method,
        "arch": {
            "embedding_type": "adm",
            "time_scale": 1.0,
            **fields,
            "name": config.model.name,
            "layers": [dataclasses.asdict(s) | {"name": s.name} for s in arch.layers],
        },
        "dtype": config.model.dtype,
        "noise": config.noise.to_dict(),
        "metric": loss.metric,
        "metric_size": loss.metric_size,
        "scales": {
            "kind": loss.scales,
            "num_scales": loss.num_scales,
            "target_ema": loss.target_ema if loss.scales == "fixed" else None,
            "start_scales": loss.start_scales,
            "end_scales": loss.end_scales,
            "start_ema": loss.start_ema,
            "total_steps": config.train.num_steps,
        },
        "optim": optim.to_dict(),
        "average": float(config.train.averages[0]),
        "batch_size": config.train.batch_size,
        "schedules": {schedule.title: schedule.sigmas for schedule in schedules},
    }


def random_weights(name: str, folder: Any = "") -> dict[str, np.ndarray]:
    """Returns random weights of LPIPS, in place of `jcm.metrics.weights.read`.

    Args:
      name: vgg16 or lpips_vgg.
      folder: not used.
    """
    del folder
    rng, found, index, width = np.random.default_rng(0), {}, 0, 3
    for block, channels in enumerate((64, 128, 256, 512, 512)):
        if name == "lpips_vgg":
            head = 0.1 * rng.uniform(size=(1, channels, 1, 1))
            found[f"lin{block}.model.1.weight"] = head.astype(np.float32)
            continue
        for _ in range(2 if block < 2 else 3):
            scale = (2 / (9 * width)) ** 0.5
            kernel = scale * rng.standard_normal((channels, width, 3, 3))
            found[f"features.{index}.weight"] = kernel.astype(np.float32)
            found[f"features.{index}.bias"] = np.zeros(channels, np.float32)
            index, width = index + 2, channels
        index += 1  # pooling
    return found


def write_outputs(config: ConfigDict, file: pathlib.Path) -> dict[str, Any]:
    """Writes weights with what the network and the loss of jcm return for them.

    Student, target and teacher all have the same random weights.

    Args:
      config: the whole config; the network computes in float32.
      file: what `torch_speed.py --check` reads (.npz).

    Returns:
      The loss, the number of parameters, and the FLOPs of a training step.
    """
    program = speed.create_program(config, jax.devices())
    network, method = program.network, program.method
    assert isinstance(method, consistency.Consistency)
    rng = np.random.default_rng(0)

    def perturbed(leaf: Any) -> np.ndarray:
        # The last layers begin as zeros, and would hide what comes before them.
        return np.asarray(leaf + 0.03 * rng.standard_normal(leaf.shape), np.float32)

    params = jax.tree.map(perturbed, jax.jit(network.init)(jax.random.key(0)))
    size, channels = config.data.image_size, config.data.channels
    shape = (_COMPARED, size, size, channels)
    x, noise = (rng.standard_normal(shape, np.float32) for _ in range(2))
    images = np.clip(rng.standard_normal(shape, np.float32), -1, 1)
    c_noise = rng.uniform(-1.5, 1, _COMPARED).astype(np.float32)
    num_scales = 18
    index = np.arange(_COMPARED) * (num_scales - 2) // (_COMPARED - 1)
    labels = jnp.zeros(_COMPARED, jnp.int32) if network.arch.num_classes else None
    given = Conditions(jnp.asarray(c_noise), labels)
    out = jax.jit(network)(params, x, given)
    frozen = Frozen(
        target=params if method.keeps_target else None,
        teachers={name: params for name in program.teachers},
        constants=method.constants,
    )
    keys = jax.random.split(jax.random.key(1), _COMPARED)
    batch = Batch(jnp.asarray(images), labels, keys, jnp.arange(_COMPARED))
    each = jax.jit(method.loss_at, static_argnums=4)(
        params, frozen, batch, index, num_scales, noise
    )
    lpips: dict[str, np.ndarray] = {}
    if config.loss.metric == "lpips":
        lpips = random_weights("vgg16") | random_weights("lpips_vgg")
    arrays: dict[str, Any] = {
        "params/" + "/".join(key.key for key in path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    arrays |= {f"lpips/{name}": array for name, array in lpips.items()}
    arrays |= {"x": x, "c_noise": c_noise, "out": np.asarray(out), "images": images}
    arrays |= {"noise": noise, "index": index, "num_scales": num_scales}
    np.savez(file, **arrays)
    return {
        "loss": float(np.mean(each)),
        "parameters": networks.count(params),
        "train_flops": flops.count(program.traced.jaxpr),
    }


def main() -> None:
    """Writes the file that another program needs: see `running.Case`."""
    what, name, file, settings = sys.argv[1:]
    weights.read = random_weights
    config = config_lib.load(str(running.ROOT / name))
    for field, value in json.loads(settings).items():
        value = tuple(value) if isinstance(value, list) else value
        config.update_from_flattened_dict({field: value})
    target = pathlib.Path(file)
    if what == "describe":
        target.write_text(json.dumps(describe(config)), encoding="utf-8")
        print("{}")
    else:
        config.model.dtype = config.loss.metric_dtype = "float32"
        print(json.dumps(write_outputs(config, target)))


if __name__ == "__main__":
    main()
