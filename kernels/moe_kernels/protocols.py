"""The seven raw kernels that a backend for accelerators supplies.

They take arrays and give arrays: no derivatives, no vmap, no checks. `composed` builds the layer
and its backward pass from them, `ops` the public single operations. Rows are those of a `Plan`:
sorted by expert, expert e owning rows offset[e]:offset[e+1]. Rows from offset[-1] on are unused: a
kernel may leave them unwritten, must not let them (or anything that they hold, NaN included) into
a result, and need not read them. Products of bfloat16 and float16 are summed in float32; results
have the dtype of the first argument unless it says otherwise.
"""

from typing import NamedTuple, Protocol

from jaxtyping import Array, Float, Int


class Up(Protocol):
    """x W_in (+ b_in), x W_gate (+ b_gate) where given, for gathered rows; the activation."""

    def __call__(
        self,
        x_td: Float[Array, "t d"],
        token_s: Int[Array, " s"],
        offset: Int[Array, " boundaries"],
        w_in: Float[Array, "e d f"],
        w_gate: Float[Array, "e d f"] | None,
        b_in: Float[Array, "e f"] | None,
        b_gate: Float[Array, "e f"] | None,
        *,
        activation: str,
        keep: bool,
    ) -> tuple[Array, Array | None, Array | None]:
        """Returns a_sf = act(h_gate) * h_in, or act(h_in) without w_gate; and, if `keep`, the
        pre-activations h_in_sf and h_gate_sf (else None, None), in the dtype of x.
        """
        ...


class GroupedMatmul(Protocol):
    """y[row] = x[row] W[e] + x2[row] W2[e] + bias[e] for row in expert e's rows."""

    def __call__(
        self,
        x: Float[Array, "rows n_in"],
        w: Float[Array, "e a b"],
        offset: Int[Array, " boundaries"],
        *,
        index: Int[Array, " s"] | None = None,
        bias: Float[Array, "e n_out"] | None = None,
        x2: Float[Array, "rows n_in"] | None = None,
        w2: Float[Array, "e a b"] | None = None,
        transposed: bool = False,
    ) -> Float[Array, "s n_out"]:
        """With `index`, row r reads x[index[r]] (and s = index.size; else s = rows). With
        `transposed`, W[e] is used transposed: w is [e, n_out, n_in], not [e, n_in, n_out].
        x2 and w2 come together, in the shapes of x and w.
        """
        ...


class Combine(Protocol):
    """out_t = sum_k weight_tk * y[row_tk] over the choices with row_tk < kept; the rest adds 0."""

    def __call__(
        self,
        y_sd: Float[Array, "s d"],
        row_tk: Int[Array, "t k"],
        kept: Int[Array, ""],
        weight_tk: Float[Array, "t k"] | None,
    ) -> Float[Array, "t d"]:
        """None for weights that are all 1. Sums are in float32."""
        ...


class HiddenGrad(Protocol):
    """From dy back through W_out and the activation, for every row."""

    def __call__(
        self,
        dy_td: Float[Array, "t d"],
        token_s: Int[Array, " s"],
        weight_s: Float[Array, " s"],
        offset: Int[Array, " boundaries"],
        w_out: Float[Array, "e f d"],
        h_in_sf: Float[Array, "s f"],
        h_gate_sf: Float[Array, "s f"] | None,
        *,
        activation: str,
    ) -> tuple[Array, Array | None, Array, Array]:
        """With da = dy[token] W_out[e]^T (float32) and a recomputed from the pre-activations:
        dh_in_sf and dh_gate_sf (None without a gate), the derivatives of <weight * da, a> by h_in
        and h_gate; weight * a, [s, f]; and <da, a>, [s] float32, which is 0 for unused rows.
        """
        ...


class WeightGrad(Protocol):
    """dw[e] = x[rows of e]^T dy[rows of e], zeros for experts without rows."""

    def __call__(
        self,
        x: Float[Array, "rows n_in"],
        dy: Float[Array, "dy_rows n_out"],
        offset: Int[Array, " boundaries"],
        *,
        x_index: Int[Array, " s"] | None = None,
        dy_index: Int[Array, " s"] | None = None,
    ) -> Float[Array, "e n_in n_out"]:
        """With an index, row r reads x[x_index[r]] or dy[dy_index[r]]."""
        ...


class SegmentPool(Protocol):
    """z[e] = sum over the rows of e of weight[row] * x[row], zeros for experts without rows."""

    def __call__(
        self,
        x: Float[Array, "rows d"],
        offset: Int[Array, " boundaries"],
        *,
        index: Int[Array, " s"] | None = None,
        weight_s: Float[Array, " s"] | None = None,
    ) -> Float[Array, "e d"]:
        """With `index`, row r reads x[index[r]]. None for weights that are all 1."""
        ...


class TopkRoute(Protocol):
    """Scores, the k best of them, and how often each expert was chosen, in one pass."""

    def __call__(
        self, logits_te: Float[Array, "t e"], k: int, *, scores: str
    ) -> tuple[Array, Array, Array]:
        """Returns expert_tk (int32, best first; the lower id wins a tie; NaN counts as -inf, and
        ids always differ), score_tk (float32, NaN where the scores are) of softmax(logits) or
        sigmoid(logits), and count_e (int32). There is at least one token.
        """
        ...


class Kernels(NamedTuple):
    """One backend's kernels."""

    up: Up
    grouped_matmul: GroupedMatmul
    combine: Combine
    hidden_grad: HiddenGrad
    weight_grad: WeightGrad
    segment_pool: SegmentPool
    topk_route: TopkRoute
