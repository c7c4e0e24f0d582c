"""The rivals in PyTorch; imported only where torch is installed.

Its OpenMP threads wait for each other in a busy loop, several milliseconds long unless told
otherwise. Where cores are shared, that hits every small operation, so unless GOMP_SPINCOUNT is set
the loop is shortened to what GNU OpenMP takes on crowded machines before torch is loaded.
"""

import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from checks import PARAMETERS
from loads import Shape

os.environ.setdefault("GOMP_SPINCOUNT", "1000")
import torch


class Unsupported(Exception):
    """This torch cannot run the rival here; the message is the reason."""


def build(
    kind: str, shape: Shape, data: dict[str, Any]
) -> tuple[Callable[[], Any], Callable[[Any], Any], dict[str, Any], Callable[[Any], Any]]:
    """forward, both, the data, and the way dy takes into torch; see `peers.Peer`.

    Both wait for the device. `both` gives back what it was given: JAX arrays for a JAX dy (to
    be compared), torch tensors for a torch dy (to be timed).

    Args:
      kind: "eager" or "grouped_mm".
      shape: sizes.
      data: as `loads.routed` makes it.

    Raises:
      Unsupported: the platform or the operation is missing.
    """
    if kind == "grouped_mm" and not hasattr(torch.nn.functional, "grouped_mm"):
        raise Unsupported(f"torch {torch.__version__} has no torch.nn.functional.grouped_mm")
    device = _device()
    torch.set_num_threads(len(os.sched_getaffinity(0)))

    def to_torch(array: Any) -> torch.Tensor:
        return torch.from_dlpack(array).to(device).clone()

    expert = to_torch(data["expert"]).long()
    leaves = [to_torch(data[name]).requires_grad_() for name in ("x", "weight", *PARAMETERS)]
    layer = {"eager": _eager, "grouped_mm": _grouped_mm}[kind]

    def run(dy: Any) -> Any:
        y = layer(expert, *leaves)
        dx, dweight, *dparams = torch.autograd.grad(y, leaves, dy)
        return y.detach(), (dx, dweight, dict(zip(PARAMETERS, dparams, strict=True)))

    def both(dy: Any) -> Any:
        if isinstance(dy, torch.Tensor):
            return Pending(run(dy))
        return jax.tree.map(_to_jax, run(to_torch(dy)))

    def forward() -> Any:
        with torch.no_grad():
            return Pending(layer(expert, *leaves))

    try:
        run(to_torch(data["dy"]))
    except (RuntimeError, NotImplementedError) as error:
        raise Unsupported(f"torch {torch.__version__}: {str(error).splitlines()[0]}") from None
    return forward, both, data, to_torch


class Pending:
    """A result that may be on its way; `jax.block_until_ready` waits for it, as for JAX's own."""

    def __init__(self, result: Any) -> None:
        self.result = result

    def block_until_ready(self) -> "Pending":
        """Returns once the device is done."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return self


def _eager(
    expert: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    w_in: torch.Tensor,
    w_out: torch.Tensor,
    w_gate: torch.Tensor,
) -> torch.Tensor:
    """One expert after the other: pick its tokens, three products, add to their places."""
    y = torch.zeros_like(x)
    # Experts that nobody chose are passed over, which costs one look at the counts.
    for e in torch.unique(expert).tolist():
        token, choice = torch.where(expert == e)
        rows = x[token]
        h = torch.nn.functional.silu(rows @ w_gate[e]) * (rows @ w_in[e])
        own = (h @ w_out[e]) * weight[token, choice, None].to(x.dtype)
        y.index_add_(0, token, own)
    return y


def _grouped_mm(
    expert: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    w_in: torch.Tensor,
    w_out: torch.Tensor,
    w_gate: torch.Tensor,
) -> torch.Tensor:
    """Sort, three grouped products, unsort, weighted sum."""
    flat = expert.reshape(-1)
    order = torch.argsort(flat, stable=True)
    place = torch.empty_like(order)
    place[order] = torch.arange(order.numel(), device=order.device)
    counts = torch.bincount(flat, minlength=w_in.shape[0])
    ends = torch.cumsum(counts, 0).to(torch.int32)
    product = torch.nn.functional.grouped_mm
    rows = x[order // expert.shape[1]]
    gate = torch.nn.functional.silu(product(rows, w_gate, offs=ends))
    y = product(gate * product(rows, w_in, offs=ends), w_out, offs=ends)
    y = y[place].reshape(*expert.shape, -1)
    return (y * weight[..., None].to(x.dtype)).sum(1)


def _device() -> torch.device:
    """The kind of device that JAX uses."""
    platform = jax.default_backend()
    if platform == "cpu":
        return torch.device("cpu")
    if platform == "gpu" and torch.cuda.is_available():
        return torch.device("cuda")
    raise Unsupported(f"torch {torch.__version__} cannot use this {platform}")


def _to_jax(tensor: torch.Tensor) -> Any:
    return jnp.asarray(tensor.detach().float().cpu().numpy())
