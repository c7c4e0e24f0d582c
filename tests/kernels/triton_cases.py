"""What the Triton kernels must do besides, in the interpreter and on a GPU."""

import jax.numpy as jnp
import moe_kernels
import numpy as np
import pytest

from tests.kernels.moe_ffn_cases import problem

NAN, INF = np.nan, np.inf


class WideTileCases:
    """Mixed into a subclass of `MoeFfnCases`."""

    def check_wide_tiles(self, dtype):
        # Row tiles of 128, and matrices narrower than the columns of theirs.
        self.check(problem(16, t=600, k=1, d=160, f=160, e=2, dtype=dtype), dtype=dtype)


class NanRouteCases:
    """A NaN logit ranks last, as -inf; ids stay in the range; its weights are NaN."""

    backend: str

    @pytest.mark.parametrize("scores", ["softmax", "sigmoid"])
    def test_nan_logits_rank_last(self, scores):
        rows = [
            ([NAN, 1.0, 2.0], [2, 1, 0]),
            ([1.0, NAN, -INF], [0, 1, 2]),
            ([-INF, NAN, 1.0], [2, 0, 1]),
            ([NAN, NAN, NAN], [0, 1, 2]),
            ([NAN, -INF, NAN], [0, 1, 2]),
            ([INF, NAN, INF], [0, 2, 1]),
            ([-NAN, 5.0, NAN], [1, 0, 2]),
            ([3.0, 1.0, 2.0], [0, 2, 1]),
        ]
        logits, want = (
            np.asarray([r[0] for r in rows], np.float32),
            np.asarray([r[1] for r in rows]),
        )
        for k in (1, 2, 3):
            expert, weight, count = moe_kernels.topk_route(
                jnp.asarray(logits), k, scores=scores, backend=self.backend
            )
            np.testing.assert_array_equal(expert, want[:, :k])
            np.testing.assert_array_equal(count, np.bincount(want[:, :k].reshape(-1), minlength=3))
            picked = np.take_along_axis(logits, want[:, :k], axis=1)
            if scores == "sigmoid":
                with np.errstate(over="ignore"):
                    right = 1 / (1 + np.exp(-picked))
            else:  # only the last row has neither a NaN nor two infinities
                right = np.full(picked.shape, NAN)
                right[-1] = np.exp(picked[-1]) / np.exp(logits[-1]).sum()
            np.testing.assert_allclose(weight, right, rtol=1e-6)
