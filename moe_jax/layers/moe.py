"""The mixture-of-experts layer: a gate, its experts, and optionally a shared expert (Flax NNX)."""

import dataclasses
import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, DTypeLike, Float, Int, PRNGKeyArray
from moe_kernels import (
    ACTIVATIONS,
    BACKENDS,
    EXCHANGES,
    moe_ffn,
    moe_ffn_expert_parallel,
)
from moe_kernels.explicit_mesh import whole_where

from moe_jax.common.checks import flag, one_of, text, whole
from moe_jax.errors import UserError
from moe_jax.gating import GateConfig, Routing, RoutingEdit, withhold
from moe_jax.layers.gate import Gate


@dataclasses.dataclass(kw_only=True, unsafe_hash=True)
class ExpertOptions:
    """How experts are computed; up to rounding, what they compute does not depend on it.

    Attributes:
        backend: of `moe_kernels.moe_ffn`; None picks by platform.
        recompute: keep no hidden states of the experts for the backward pass, but compute them
            again there (gradient checkpointing; tokens don't travel again).
        axis: mesh axis that the experts are spread over, where they are.
        exchange: how tokens and experts meet there: a name that `moe_kernels.EXCHANGES` has.
    """

    backend: str | None = None
    recompute: bool = False
    axis: str = "expert"
    exchange: str = "all_to_all"

    def validate(self, path: str = "") -> None:
        """Check the names.

        Raises:
            UserError: one is unknown.
        """
        if self.backend is not None:
            one_of(path, "backend", self.backend, BACKENDS)
        flag(path, "recompute", self.recompute)
        text(path, "axis", self.axis)
        one_of(path, "exchange", self.exchange, EXCHANGES)


class FeedForward(nnx.Module):
    """The dense block that an expert is: W_out(act(x W_gate) * (x W_in)), or W_out(act(x W_in)).

    Parameters are float32, truncated normal of variance 1/fan_in, without biases.
    """

    def __init__(
        self,
        d_model: int,
        d_hidden: int,
        *,
        glu: bool = True,
        activation: str = "silu",
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        """Make the parameters; arguments as in `MoE`."""
        whole("", "d_model", d_model, 1)
        whole("", "d_hidden", d_hidden, 1)
        one_of("", "activation", activation, ACTIVATIONS)
        self.activation = activation
        self.dtype = dtype
        init = nnx.initializers.lecun_normal()
        self.w_in_df = nnx.Param(init(rngs.params(), (d_model, d_hidden), jnp.float32))
        self.w_out_fd = nnx.Param(init(rngs.params(), (d_hidden, d_model), jnp.float32))
        self.w_gate_df = (
            nnx.Param(init(rngs.params(), (d_model, d_hidden), jnp.float32)) if glu else None
        )

    def __call__(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
        """[... d] -> [... d] in the dtype of x."""
        dtype = x.dtype if self.dtype is None else self.dtype
        act = ACTIVATIONS[self.activation]
        h = x.astype(dtype)

        def linear(h: Array, w: nnx.Param) -> Array:
            return h @ whole_where(w[...].astype(dtype), h)

        up = linear(h, self.w_in_df)
        hidden = act(up) if self.w_gate_df is None else act(linear(h, self.w_gate_df)) * up
        return linear(hidden, self.w_out_fd).astype(x.dtype)


class MoE(nnx.Module):
    """Mixture of experts: y_t = sum_k weight_tk Expert[expert_tk](x_t) (+ shared expert).

    Where a `RoutingEdit` zeroes experts, these add withheld_te stand_in_e instead, in float32:
    what the edit gives for their output, with the weight they would have had.

    The decision is returned, never stored: `y, routing = moe(x)`. Where the gate has a capacity,
    `dropped(routing)` says how many assignments it refused; a token without an expert gets 0 from
    the routed part (its residual connection carries it).

    Dtypes: parameters are float32. The gate computes in float32 whatever the dtype of x; the
    experts compute in `dtype` (None: the dtype of x), sums of products in float32; y has the dtype
    of x.

    Initialisation: expert weights are truncated normal of variance 1/fan_in (fan_in is d for w_in
    and w_gate, f for w_out), each expert independently; the router is `Gate`'s.

    On a mesh whose axes are Explicit (`jax.make_mesh`), x sharded over its batch: each device works
    on its own tokens with all experts, the result is that of one device, and a capacity counts
    among all tokens. Under Auto axes every device would get all tokens: use `jax.shard_map`.

    On a mesh, inside `jax.shard_map`: where the parameters w_* that the module holds are a
    device's part of the experts, tokens travel over `options.axis` to the experts they chose and
    back (`moe_kernels.moe_ffn_expert_parallel`). Nothing else changes: the gate sees the device's
    tokens, and a capacity counts among these (as GShard's groups do).

    Parameters by name: gate.w_de, w_in_edf, w_out_efd, w_gate_edf (None without glu), shared.*,
    shared_gate_d.
    """

    def __init__(
        self,
        d_model: int,
        d_expert: int,
        config: GateConfig,
        *,
        glu: bool = True,
        activation: str = "silu",
        d_shared: int | None = None,
        shared_gate: bool = False,
        router_bias: bool = False,
        selection_bias: bool = False,
        dtype: DTypeLike | None = None,
        options: ExpertOptions | None = None,
        rngs: nnx.Rngs,
    ):
        """Make the parameters.

        Args:
            d_model: width d of tokens.
            d_expert: hidden width f of each expert.
            config: the gate.
            glu: experts are gated linear units (SwiGLU with "silu"), else act(x W_in) W_out.
            activation: a name that `moe_kernels.ACTIVATIONS` has.
            d_shared: hidden width of an expert that sees every token with weight 1; None: no such
                expert.
            shared_gate: weight the shared expert by sigmoid(x . w) instead (Qwen1.5-MoE).
            router_bias: a learned bias on the router's logits.
            selection_bias: a `SelectionBias` for aux-loss-free balancing.
            dtype: of the experts' arithmetic.
            options: how the experts are computed; a copy is kept. None: `ExpertOptions()`.
            rngs: of the initialisation.

        Raises:
            UserError: a size below 1, an unknown activation, a shared gate without a shared
                expert, or a gate config or options that are not valid.
        """
        whole("", "d_model", d_model, 1)
        whole("", "d_expert", d_expert, 1)
        one_of("", "activation", activation, ACTIVATIONS)
        options = ExpertOptions() if options is None else dataclasses.replace(options)
        options.validate("options")
        if shared_gate and d_shared is None:
            raise UserError("shared_gate=True needs d_shared, the width of the shared expert")
        self.activation = activation
        self.dtype = dtype
        self.options = options
        self.gate = Gate(
            d_model, config, use_bias=router_bias, selection_bias=selection_bias, rngs=rngs
        )
        experts = config.num_experts
        # batch_axis: fan_in is that of one expert, not of all together.
        init = nnx.initializers.lecun_normal(batch_axis=(0,))

        def param(rows: int, columns: int, *axes: str) -> nnx.Param:
            values = init(rngs.params(), (experts, rows, columns), jnp.float32)
            return nnx.Param(values, axes=("expert", *axes))

        self.w_in_edf = param(d_model, d_expert, "embed", "hidden")
        self.w_out_efd = param(d_expert, d_model, "hidden", "embed")
        self.w_gate_edf = param(d_model, d_expert, "embed", "hidden") if glu else None
        self.shared = (
            None
            if d_shared is None
            else FeedForward(
                d_model, d_shared, glu=glu, activation=activation, dtype=dtype, rngs=rngs
            )
        )
        self.shared_gate_d = (
            nnx.Param(jnp.zeros(d_model, jnp.float32), full_precision=True) if shared_gate else None
        )

    def __call__(
        self,
        x: Float[Array, "*batch d"],
        *,
        edit: RoutingEdit | None = None,
        key: PRNGKeyArray | None = None,
        where: Bool[Array, "*batch"] | None = None,
        segments: Int[Array, "*batch"] | None = None,
    ) -> tuple[Float[Array, "*batch d"], Routing]:
        """Send the tokens through their experts.

        Args:
            x: tokens [... d]; the leading axes are flattened in order to t for the gate.
            edit: an intervention on the gate, its token axis being t.
            key: of the gate's noise; needed only if the gate has noise and is not in eval mode.
            where: real tokens [...]: padding has no experts and takes no capacity.
            segments: sequence of each token [...], so that capacity counts for each sequence.

        Returns:
            y [... d] in the dtype of x, and the routing over t tokens.

        Raises:
            ValueError: x has another width, noise without a key, or an edit of other shapes.
        """
        self._check(x, edit)
        x_td = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
        routing = self.gate(
            x_td,
            # What is zeroed loses its weight after the gate, so that a stand-in can have it.
            edit=None if edit is None else edit._replace(zero=jnp.zeros_like(edit.zero)),
            key=key,
            where=None if where is None else where.reshape(-1),
            segments=None if segments is None else segments.reshape(-1),
        )
        if edit is None:
            y_td = self._work(x_td, routing.expert, routing.weight)
        else:
            routing, withheld = withhold(routing, edit)
            y_td = self._work(x_td, routing.expert, routing.weight)
            if edit.stand_in.shape[-1] != 1:
                y_td = _stood_in(y_td, withheld, edit.stand_in)
        if self.shared is not None:
            y_td = y_td + self._shared(x_td, self.shared)
        return y_td.reshape(x.shape), routing

    def expert_outputs(
        self, x: Float[Array, "t d"], expert: Int[Array, "t k"]
    ) -> Float[Array, "t k d"]:
        """What each of the experts gives alone, before any weight: Expert[expert_tk](x_t).

        Args:
            x: tokens.
            expert: experts of each, as `Routing.expert`: num_experts gives 0.

        Returns:
            In the dtype of x, computed as in a call of the layer. The shared expert has no part.

        Raises:
            ValueError: x has another width.
        """
        self._check(x, None)
        t, k = expert.shape
        one = jnp.ones((t * k, 1), jnp.float32)
        y = self._work(jnp.repeat(x, k, axis=0), expert.reshape(-1, 1), one)
        return y.reshape(t, k, x.shape[-1])

    def _check(self, x: Float[Array, "*batch d"], edit: RoutingEdit | None) -> None:
        d_model = self.w_in_edf.shape[1]
        if x.shape[-1] != d_model:
            raise ValueError(f"x has width {x.shape[-1]}, the layer has d_model={d_model}")
        if edit is not None and edit.stand_in.shape[-1:] not in ((1,), (d_model,)):
            raise ValueError(
                f"edit.stand_in has shape {edit.stand_in.shape}, the layer has d_model={d_model}: "
                "its last axis must be that or 1"
            )

    def _work(
        self, x: Float[Array, "t d"], expert: Int[Array, "t k"], weight: Float[Array, "t k"]
    ) -> Float[Array, "t d"]:
        """The routed experts' weighted sum, in the dtype of x."""
        dtype = x.dtype if self.dtype is None else self.dtype
        return self._experts()(
            x.astype(dtype),
            expert,
            weight,
            self.w_in_edf[...].astype(dtype),
            self.w_out_efd[...].astype(dtype),
            w_gate=None if self.w_gate_edf is None else self.w_gate_edf[...].astype(dtype),
            activation=self.activation,
            recompute=self.options.recompute,
            backend=self.options.backend,
        ).astype(x.dtype)

    def _experts(self) -> Callable[..., Array]:
        """`moe_ffn`, or the one for experts that this device holds a part of."""
        if self.w_in_edf.shape[0] == self.gate.config.num_experts:
            return moe_ffn
        return partial(
            moe_ffn_expert_parallel,
            axis_name=self.options.axis,
            exchange=self.options.exchange,
        )

    def _shared(self, x: Float[Array, "t d"], shared: FeedForward) -> Float[Array, "t d"]:
        y = shared(x)
        if self.shared_gate_d is None:
            return y
        open_t = jax.nn.sigmoid(x.astype(jnp.float32) @ whole_where(self.shared_gate_d[...], x))
        return (y.astype(jnp.float32) * open_t[:, None]).astype(x.dtype)


def _stood_in(
    y: Float[Array, "t d"], withheld: Float[Array, "t e"], stand_in: Float[Array, " e #d"]
) -> Float[Array, "t d"]:
    """The sum y + withheld stand_in, and y bit for bit at tokens of which nothing is withheld."""
    more = jnp.matmul(withheld, stand_in.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST)
    there = jnp.any(withheld != 0, axis=1, keepdims=True)
    return jnp.where(there, (y.astype(jnp.float32) + more).astype(y.dtype), y)
