"""A program marked for a platform is refused on any other, when it is lowered."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from moe_kernels.required_platform import require


def marked(x):
    arrays = {"x": x, "n": x + 1}
    return 2 * require(arrays, ("cuda", "rocm"), asked="backend='gpu'", instead="another")["x"]


@pytest.mark.parametrize("run", [marked, jax.jit(marked)])
def test_refused_on_cpu(run):
    with pytest.raises(
        ValueError,
        match=r"^backend='gpu' runs on cuda and rocm, but this program is for cpu: use another",
    ):
        run(jnp.ones(3))


def test_lowered_for_its_platform_on_a_machine_without_it():
    exported = jax.export.export(jax.jit(marked), platforms=["cuda"])(jnp.ones(3))
    assert exported.platforms == ("cuda",)


def test_does_not_stand_in_the_way_where_another_branch_is_taken():
    def either(x):
        return jax.lax.platform_dependent(x, cuda=marked, default=lambda x: x + 1)

    np.testing.assert_array_equal(jax.jit(either)(jnp.zeros(2)), [1, 1])
