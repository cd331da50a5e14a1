"""Tests of the preconditioning: the exact boundary, and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcm.diffusion import precond


@pytest.mark.parametrize("sigma_min", [0.002, 0.01, 0.5])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e6])
def test_consistency_function_is_the_identity_at_sigma_min(sigma_min, scale):
    x = jax.random.normal(jax.random.key(0), (4, 8, 8, 3)) * scale

    def network(x, c_noise):
        return 1e3 * jnp.cos(1e3 * x) + c_noise[:, None, None, None]

    function = jax.jit(lambda x, s: precond.Consistency(shift=sigma_min)(network, x, s))
    y = function(x, jnp.full(4, sigma_min))
    np.testing.assert_array_equal(np.asarray(y), np.asarray(x))


def test_input_and_target_of_the_network_have_unit_variance():
    """This defines c_in, c_skip and c_out (Karras et al. 2022, Appendix B.6)."""
    sigma = jnp.array([0.002, 0.1, 1.0, 80.0])
    c_skip, c_out = precond.EDM().skip_and_out(sigma)
    data, noise = 0.25, sigma**2
    seen = {}

    def network(x, c_noise):
        seen.update(x=x, c_noise=c_noise)
        return jnp.zeros_like(x)

    precond.EDM()(network, jnp.ones((4, 1, 1, 1)), sigma)
    c_in = seen["x"].ravel()
    np.testing.assert_allclose(c_in**2 * (data + noise), 1, rtol=1e-5)
    np.testing.assert_allclose(seen["c_noise"], np.log(sigma) / 4, rtol=1e-5)
    target = ((1 - c_skip) ** 2 * data + c_skip**2 * noise) / c_out**2
    np.testing.assert_allclose(target, 1, rtol=1e-4)


def test_without_the_shift_the_consistency_function_is_preconditioned_like_edm():
    sigma = jnp.array([0.3, 5.0, 80.0])
    edm = precond.EDM().skip_and_out(sigma)
    shifted = precond.Consistency(shift=0.0).skip_and_out(sigma)
    for a, b in zip(edm, shifted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
