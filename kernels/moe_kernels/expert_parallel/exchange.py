"""One round of an exchange: token choices travel to the devices that own their experts, and back.

For use inside `jax.shard_map`: n devices of one mesh axis own num_experts / n neighbouring experts
each. In one round a device sends n * c rows, c to each peer (device of the axis, itself included),
so shapes are static whatever the load is. Choices that find no room go in a later round.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from moe_kernels import backends
from moe_kernels.plan import Plan
from moe_kernels.required_platform import require


class Buffer(NamedTuple):
    """The layout of the rows that one round sends: which choice is in which row.

    Letters: r = n * c rows, n peers. A slot is a (token, choice) pair (`plan`).
    """

    token: Int[Array, " r"]  # row -> token; the number of tokens where the row is empty
    slot: Int[Array, " r"]  # row -> slot; the number of slots where the row is empty
    expert: Int[Array, " r"]  # row -> its expert as the peer counts them; experts a peer: empty
    row: Int[Array, "t k"]  # slot -> row; r where the slot isn't in this round
    sent: Int[Array, " n"]  # rows in use for each peer; they come first


class Sizes(NamedTuple):
    """How many rows a device sends to each peer, and gets from each."""

    sent: Int[Array, " n"]
    received: Int[Array, " n"]

    def back(self) -> "Sizes":
        """Those of the way back."""
        return Sizes(self.received, self.sent)


def loads(plan: Plan, num_peers: int) -> Int[Array, " n"]:
    """How many slots go to each peer in all."""
    bound = _bounds(plan, num_peers)
    return bound[1:] - bound[:-1]


def make_buffer(
    plan: Plan, expert: Int[Array, "t k"], num_peers: int, rows: int, index: Int[Array, ""] | int
) -> Buffer:
    """The layout of round `index`: for each peer, its slots number index * rows and following.

    Args:
      plan: of `expert`, over the experts of all peers.
      expert: ids over all peers.
      num_peers: n.
      rows: c, rows for each peer.
      index: of the round, from 0.
    """
    bound = _bounds(plan, num_peers)
    share = (plan.offset.shape[0] - 1) // num_peers
    tokens, k = expert.shape
    peer = jnp.arange(num_peers, dtype=jnp.int32)
    place_nc = index * rows + jnp.arange(rows, dtype=jnp.int32)[None]
    full_nc = place_nc < (bound[1:] - bound[:-1])[:, None]
    slot_nc = plan.slot.at[bound[:-1, None] + place_nc].get(mode="fill", fill_value=0)
    local_nc = expert.reshape(-1)[slot_nc] - share * peer[:, None]
    # The way from slot to row: which peer, and how far behind the first slot of the round.
    peer_tk = jnp.clip(expert // share, 0, num_peers - 1)
    place_tk = plan.row.reshape(tokens, k) - bound[peer_tk] - index * rows
    kept_tk = (expert >= 0) & (expert < share * num_peers)
    here_tk = kept_tk & (place_tk >= 0) & (place_tk < rows)
    return Buffer(
        token=jnp.where(full_nc, slot_nc // k, tokens).reshape(-1),
        slot=jnp.where(full_nc, slot_nc, tokens * k).reshape(-1),
        expert=jnp.where(full_nc, local_nc, share).reshape(-1),
        row=jnp.where(here_tk, peer_tk * rows + place_tk, num_peers * rows),
        sent=jnp.sum(full_nc, axis=1, dtype=jnp.int32),
    )


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def dispatch(backend: str | None, x: Float[Array, "t d"], buffer: Buffer) -> Float[Array, "r d"]:
    """The rows to send: each the activations of its token, zeros where it is empty."""
    return x.at[buffer.token].get(mode="fill", fill_value=0)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def combine(backend: str | None, rows: Float[Array, "r d"], buffer: Buffer) -> Float[Array, "t d"]:
    """Each token's rows, summed in float32: the transpose of `dispatch`."""
    arrays = {"y_sd": rows, "row_tk": buffer.row, "kept": jnp.int32(rows.shape[0])}
    return backends.run(backend, "combine", arrays | {"weight_tk": None})


# A sum over the choices instead of the scatter-add that JAX would derive.
dispatch.defvjp(
    lambda backend, x, buffer: (dispatch(backend, x, buffer), buffer),
    lambda backend, buffer, drows: (combine(backend, drows, buffer), None),
)
combine.defvjp(
    lambda backend, rows, buffer: (combine(backend, rows, buffer), buffer),
    lambda backend, buffer, dy: (dispatch(backend, dy, buffer), None),
)


def exchange(rows: Array, sizes: Sizes | None, axis_name: str) -> Array:
    """Sends each peer its c rows and receives its rows, in the place of those sent to it.

    Args:
      rows: n * c of them, c for each peer, those in use first.
      sizes: rows in use: `ragged_all_to_all` moves those only, and gives zeros for the others.
        None: `all_to_all` moves all rows.
      axis_name: mesh axis of the peers.
    """
    if sizes is None:
        return lax.all_to_all(rows, axis_name, 0, 0, tiled=True)
    peers = sizes.sent.shape[0]
    rows_per_peer = rows.shape[0] // peers
    target = lax.axis_index(axis_name).astype(jnp.int32) * rows_per_peer
    return lax.ragged_all_to_all(
        rows,
        jnp.zeros_like(rows),
        jnp.arange(peers, dtype=jnp.int32) * rows_per_peer,
        sizes.sent,
        jnp.full(peers, target, jnp.int32),
        sizes.received,
        axis_name=axis_name,
    )


def exchange_sizes(sent: Int[Array, " n"], axis_name: str) -> Sizes:
    """How many rows each peer will send, for `ragged_all_to_all`.

    Raises:
      ValueError: when lowered for a platform whose XLA has no ragged_all_to_all.
    """
    sent = require(
        sent,
        ("cuda", "rocm", "tpu"),
        asked="exchange='ragged_all_to_all'",
        instead="exchange='all_to_all'",
    )
    return Sizes(sent, lax.all_to_all(sent, axis_name, 0, 0, tiled=True))


def _bounds(plan: Plan, num_peers: int) -> Int[Array, " boundaries"]:
    """Peer p's slots are the plan's rows bound[p]:bound[p + 1]."""
    return plan.offset[:: (plan.offset.shape[0] - 1) // num_peers]
