"""RoutingEdit: interventions on a gate as arrays, so that one compiled function runs them all."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from moe_jax.gating.config import GateConfig
from moe_jax.gating.scores import take

KEEP = -1  # in `replay`: this slot is routed as usual
# Fields of `RoutingEdit` without an axis of tokens: one value for all of them.
WITHOUT_TOKENS = ("seed", "stand_in")


class RoutingEdit(NamedTuple):
    """What to change in a gate's decision, for which tokens.

    Every field is an array, and the edit that changes nothing (`identity`) is bitwise the same as
    no edit. So a jitted function that takes an edit runs any of them without compiling again,
    `jax.vmap` over stacked edits (`jax.tree.map(lambda *a: jnp.stack(a), *edits)`) runs hundreds at
    once, and a leading layer axis gives each layer its own: the model takes
    `jax.tree.map(lambda a: a[layer], edits)`.

    Shapes: "#t" is either t, a value for each token, or 1, the same for all; e = num_experts;
    k = the slots of the routing (`GateConfig.slots`); "#d" is d_model or 1.

    The fields are applied in this order:

    1. `bias` [#t e]: added to the logits (after noise), so the score, the choice and the weight see
       it. The identity is -0.0, because x + -0.0 has the bits of x for every x.
       `steer` [#t e]: then a value m > 0 sets the logit to the token's largest one plus m, m < 0 to
       its smallest one plus m; 0 leaves it. (SteerMoE's ceiling and floor: steered experts share
       one logit.)
    2. `suppress` [#t e]: the logit is -inf before the score. The expert can't be chosen and has no
       share in the softmax, so the others' weights grow.
    3. `exclude` [#t e]: the expert can't be chosen, but the scores of all experts are as they were.
       Group scores (`num_groups` > 1) are computed without it. (2 and 3 choose the same experts
       where the score is one softmax; their weights are the same only after renormalisation.)
    4. `random_k` [#t]: the token's experts are drawn uniformly, without replacement, among those
       not excluded or suppressed (groups do not apply); their weights are what the gate gives them.
       `seed` [] makes the draw; a draw may hit experts that the gate would have chosen.
       `gumbel` [#t]: at a value T > 0 the token takes the experts of largest logit + T * Gumbel
       noise, of the same seed: sampling without replacement from softmax(logits / T). Groups and
       selection biases do not apply; where `random_k` is set it comes instead.
    5. `rank_shift` [#t]: take the experts of ranks r, ..., r+k-1 instead of 0, ..., k-1. Where
       fewer than r+k can be chosen the shift ends at the last k, so that the compute stays equal.
    6. `force` [#t e]: forced experts (unless suppressed or excluded) come before all others,
       among themselves in the order of their scores, whatever groups allow. More than k: the best.
    7. `replay` [#t k]: slot j holds this expert, -1 as routed, num_experts dropped. Weights are
       what the gate gives to these experts now. The same expert must not appear twice in a row.
    8. `replay_weight` [#t k]: slot j has this weight (after renormalisation and scale), NaN as
       routed.
    9. `permute` [#t e]: expert e's work is done by permute[e]. Weights stay those of e: who works
       changes, how much does not.
    10. Capacity, if the gate has one, counts the experts that result.
    11. `zero` [#t e]: the contribution of this expert is zero (weight 0): nobody takes its place,
        and it still fills its slot and its capacity.
        `stand_in` [e #d]: what a zeroed expert gives in place of its own output, the same for all
        tokens: the token gets weight_e * stand_in_e, weight_e what it was before it was zeroed.
        The identity is zeros [e 1]: so narrow a one isn't read, and costs nothing. The layer
        (`MoE`) adds it; in a `Routing` the weight is that of the expert's own output, so 0.
    12. `scale` [#t e]: multiplies the weight of this expert. 11 and 12 act on the expert that does
        the work (after 9).

    `tokens` [#t] scopes all of these: where it is False the token is routed as usual (though it may
    gain or lose a place through the others where the gate has a capacity).

    Under expert choice a token's `exclude`, `random_k` and `force` bear on the experts' ranking of
    the tokens: an expert never takes the token, ranks it by a random number, or takes it first.
    `rank_shift` and `gumbel` have no meaning there and are not read.
    """

    tokens: Bool[Array, " #t"]
    suppress: Bool[Array, "#t e"]
    exclude: Bool[Array, "#t e"]
    zero: Bool[Array, "#t e"]
    force: Bool[Array, "#t e"]
    bias: Float[Array, "#t e"]
    steer: Float[Array, "#t e"]
    scale: Float[Array, "#t e"]
    permute: Int[Array, "#t e"]
    rank_shift: Int[Array, " #t"]
    random_k: Bool[Array, " #t"]
    gumbel: Float[Array, " #t"]
    seed: UInt32[Array, ""]
    replay: Int[Array, "#t k"]
    replay_weight: Float[Array, "#t k"]
    stand_in: Float[Array, " e #d"]

    @classmethod
    def identity(cls, config: GateConfig, *, num_tokens: int = 1) -> "RoutingEdit":
        """The edit that changes nothing.

        Args:
            config: the gate's config: gives num_experts and the number of slots.
            num_tokens: leading size of the arrays; 1 stands for any number of tokens.
        """
        shape = (num_tokens, config.num_experts)
        no = jnp.zeros(shape, bool)
        return cls(
            tokens=jnp.ones(num_tokens, bool),
            suppress=no,
            exclude=no,
            zero=no,
            force=no,
            bias=jnp.full(shape, -0.0, jnp.float32),
            steer=jnp.zeros(shape, jnp.float32),
            scale=jnp.ones(shape, jnp.float32),
            permute=jnp.broadcast_to(jnp.arange(config.num_experts, dtype=jnp.int32)[None], shape),
            rank_shift=jnp.zeros(num_tokens, jnp.int32),
            random_k=jnp.zeros(num_tokens, bool),
            gumbel=jnp.zeros(num_tokens, jnp.float32),
            seed=jnp.uint32(0),
            replay=jnp.full((num_tokens, config.slots), KEEP, jnp.int32),
            replay_weight=jnp.full((num_tokens, config.slots), jnp.nan, jnp.float32),
            stand_in=jnp.zeros((config.num_experts, 1), jnp.float32),
        )

    @classmethod
    def make(
        cls,
        config: GateConfig,
        *,
        tokens: Bool[Array | np.ndarray, " #t"] | None = None,
        suppress: Sequence[int] = (),
        exclude: Sequence[int] = (),
        zero: Sequence[int] = (),
        force: Sequence[int] = (),
        bias: Mapping[int, float] | None = None,
        steer: Mapping[int, float] | None = None,
        scale: Mapping[int, float] | None = None,
        permute: Sequence[int] | None = None,
        rank_shift: int = 0,
        random_k: bool = False,
        gumbel: float = 0.0,
        seed: int = 0,
        replay: Int[Array | np.ndarray, "#t k"] | None = None,
        replay_weight: Float[Array | np.ndarray, "#t k"] | None = None,
        stand_in: Float[Array | np.ndarray, "e d"] | None = None,
    ) -> "RoutingEdit":
        """An edit from lists of expert ids; what is not given stays as the identity has it.

        Args:
            config: the gate's config.
            tokens: the tokens concerned [t]; None means all.
            suppress: ids of experts; likewise exclude, zero, force.
            exclude: see `suppress`.
            zero: see `suppress`.
            force: see `suppress`.
            bias: what is added to the logit, by expert id.
            steer: margin beyond the largest (> 0) or smallest (< 0) logit, by expert id.
            scale: what multiplies the weight, by expert id.
            permute: expert that does the work of expert 0, 1, ..., a permutation of 0..E-1.
            rank_shift: ranks to skip, >= 0.
            random_k: draw the experts at random.
            gumbel: temperature of the noise on the choice, >= 0.
            seed: of the draw.
            replay: recorded experts [t k] (or [1 k], the same for all tokens), such as
                `Routing.expert` of another run; -1 for "as routed".
            replay_weight: recorded weights [t k], NaN for "as routed".
            stand_in: outputs [e d] for the experts of `zero`; None: nothing.

        Raises:
            ValueError: an expert id out of range, no permutation, a negative shift or temperature,
                a replay whose last axis is not the number of slots, or a stand_in that has not a
                row for each expert, or rows of one number, which are not read.
        """
        edit = cls.identity(config)
        experts = config.num_experts
        masks = {"suppress": suppress, "exclude": exclude, "zero": zero, "force": force}
        changes: dict[str, Array] = {}
        for name, ids in masks.items():
            mask = np.zeros((1, experts), bool)
            mask[0, _checked(name, ids, experts)] = True
            changes[name] = jnp.asarray(mask)
        for name, by_id in (("bias", bias), ("steer", steer), ("scale", scale)):
            values = np.array(getattr(edit, name))
            for expert, value in (by_id or {}).items():
                values[0, _checked(name, [expert], experts)] = value
            changes[name] = jnp.asarray(values)
        if permute is not None:
            if sorted(permute) != list(range(experts)):
                raise ValueError(f"permute={list(permute)} is no permutation of 0..{experts - 1}")
            changes["permute"] = jnp.asarray(permute, jnp.int32)[None]
        if rank_shift < 0:
            raise ValueError(f"rank_shift={rank_shift} must be at least 0")
        if not gumbel >= 0:
            raise ValueError(f"gumbel={gumbel} must be at least 0")
        for name, recorded, dtype in (
            ("replay", replay, jnp.int32),
            ("replay_weight", replay_weight, jnp.float32),
        ):
            if recorded is not None:
                if recorded.shape[-1] != config.slots:
                    raise ValueError(
                        f"{name} has {recorded.shape[-1]} columns, the gate has {config.slots}"
                    )
                changes[name] = jnp.asarray(recorded, dtype)
        if stand_in is not None:
            if stand_in.ndim != 2 or len(stand_in) != experts or stand_in.shape[1] == 1:
                raise ValueError(
                    f"stand_in has shape {stand_in.shape}, the gate wants ({experts}, d_model)"
                )
            changes["stand_in"] = jnp.asarray(stand_in, jnp.float32)
        return edit._replace(
            tokens=edit.tokens if tokens is None else jnp.asarray(tokens),
            rank_shift=jnp.full(1, rank_shift, jnp.int32),
            random_k=jnp.full(1, random_k),
            gumbel=jnp.full(1, gumbel, jnp.float32),
            seed=jnp.uint32(seed),
            **changes,
        )

    def check(self, config: GateConfig, num_tokens: int) -> None:
        """Check the shapes against the gate and the number of tokens.

        The width of `stand_in` is the layer's to check.

        Raises:
            ValueError: one does not fit; the message names it.
        """
        per_expert = (config.num_experts,)
        tails = {
            "tokens": (),
            "rank_shift": (),
            "random_k": (),
            "gumbel": (),
            "seed": (),
            "replay": (config.slots,),
            "replay_weight": (config.slots,),
            "stand_in": (*per_expert, *self.stand_in.shape[-1:]),
        }
        for name, array in self._asdict().items():
            tail = tails.get(name, per_expert)
            axes: tuple[tuple[int, ...], ...] = ((num_tokens,), (1,))
            if name in WITHOUT_TOKENS:
                axes = ((),)
            allowed = tuple((*first, *tail) for first in axes)
            if array.shape not in allowed:
                raise ValueError(
                    f"edit.{name} has shape {array.shape}, the gate wants"
                    f" {' or '.join(map(str, dict.fromkeys(allowed)))}"
                )

    def scoped(self, config: GateConfig, num_tokens: int) -> "RoutingEdit":
        """The same edit with a row for each token, and the identity on tokens out of scope.

        Raises:
            ValueError: a shape does not fit (`check`).
        """
        self.check(config, num_tokens)
        on_t = jnp.broadcast_to(self.tokens, num_tokens)
        on = on_t[:, None]
        own = jnp.arange(self.permute.shape[-1], dtype=self.permute.dtype)[None]
        return RoutingEdit(
            tokens=on_t,
            suppress=self.suppress & on,
            exclude=self.exclude & on,
            zero=self.zero & on,
            force=self.force & on,
            bias=jnp.where(on, self.bias, -0.0),
            steer=jnp.where(on, self.steer, 0.0),
            scale=jnp.where(on, self.scale, 1.0),
            permute=jnp.where(on, self.permute, own),
            rank_shift=jnp.where(on_t, self.rank_shift, 0),
            random_k=self.random_k & on_t,
            gumbel=jnp.where(on_t, self.gumbel, 0.0),
            seed=self.seed,
            replay=jnp.where(on, self.replay, KEEP),
            replay_weight=jnp.where(on, self.replay_weight, jnp.nan),
            stand_in=self.stand_in,
        )

    def on_logits(self, z: Float[Array, "t e"]) -> Float[Array, "t e"]:
        """Steps 1 and 2 on logits; of an edit that `scoped` made."""
        return jnp.where(self.suppress, -jnp.inf, _steered(z + self.bias, self.steer))

    def on_choice(
        self, expert: Int[Array, "t k"], weight: Float[Array, "t k"]
    ) -> tuple[Int[Array, "t k"], Float[Array, "t k"]]:
        """Steps 8 and 9 on the chosen experts and their weights; of an edit that `scoped` made."""
        weight = jnp.where(jnp.isnan(self.replay_weight), weight, self.replay_weight)
        return take(self.permute, expert), weight

    def on_weights(
        self, expert: Int[Array, "t k"], weight: Float[Array, "t k"]
    ) -> Float[Array, "t k"]:
        """Steps 11 and 12 on the weights; of an edit that `scoped` made."""
        return jnp.where(take(self.zero, expert), 0, weight * take(self.scale, expert))


def _steered(z: Float[Array, "t e"], margin: Float[Array, "t e"]) -> Float[Array, "t e"]:
    """Logits moved beyond the token's largest (margin > 0) or smallest (margin < 0).

    0 leaves a logit, and -inf (not available) stays.
    """
    there = z > -jnp.inf
    top = jnp.max(z, axis=1, keepdims=True)
    bottom = jnp.min(jnp.where(there, z, jnp.inf), axis=1, keepdims=True)
    moved = jnp.where(margin > 0, top, bottom) + margin
    return jnp.where(there & (margin != 0), moved, z)


def _checked(name: str, ids: Sequence[int], num_experts: int) -> list[int]:
    """The ids as a list, if they are experts."""
    wrong = [i for i in ids if not 0 <= i < num_experts]
    if wrong:
        raise ValueError(f"{name} names expert {wrong[0]}, but num_experts={num_experts}")
    return [int(i) for i in ids]
