"""Routes recorded by another engine, checked, and replayed here.

vLLM and SGLang return the experts of a request as whole numbers [t l k]: tokens, layers, choices
(`return_routed_experts`). An engine doesn't run the last token it generates, so a request of n
tokens has n - 1 rows. Letters: t tokens, l layers, k choices.
"""

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from moe_jax.common.files import local_path, parse, read_text
from moe_jax.errors import UserError
from moe_jax.gating import KEEP, GateConfig, RoutingEdit
from moe_jax.misrouting.interventions import replay

SHARED = 255  # SGLang: what the slot of a shared expert holds
UNREADABLE = (
    *(OSError, EOFError, ValueError, TypeError, KeyError, AttributeError, RuntimeError),
    *(MemoryError, OverflowError, SyntaxError, zipfile.BadZipFile, zlib.error),
)
"""What NumPy raises for a file that is cut short, damaged, of another kind or pickled."""


def read_routes(
    source: np.ndarray | Sequence[Any] | str | Path,
    *,
    num_experts: int,
    num_layers: int,
    k: int,
    num_tokens: int | None = None,
    layers: Sequence[int] | None = None,
    all_layers: int | None = None,
    name: str = "routes",
) -> Int[np.ndarray, "t l k"]:
    """Recorded experts, as `Routing.expert` of each MoE layer has them.

    Args:
      source: an array, nested lists, or a file: .npy, .npz (holding one array) or .json (nested
        lists). Nothing pickled is read.
      num_experts: of each layer.
      num_layers: MoE layers of the model.
      k: choices of a token, shared experts left out.
      num_tokens: rows that there must be; None: any.
      layers: which of the recorded layers to take, where the engine also records layers without
        experts; None: all.
      all_layers: how many layers the model has, with experts and without. With it `layers` are
        taken from an array of so many, and an array of num_layers is taken as it is.
      name: what messages call it; a file's path goes before.

    Returns:
      [t l k] int32. Columns of SGLang's shared experts, 255 throughout, are gone.

    Raises:
      UserError: a file that can't be read, no whole numbers, a wrong shape, an id out of range, an
        expert twice in a row, nothing but zeros, 255 here and there, experts in a layer that has
        none.
      ValueError: `layers` that don't number num_layers.
    """
    if layers is not None and len(layers) != num_layers:
        raise ValueError(f"layers names {len(layers)} layers, num_layers={num_layers}")
    if isinstance(source, str | Path):
        name = f"{source}: {name}"
        source = _load(local_path(source, "routes"), name)
    routes = _whole_numbers(source, name)
    if routes.ndim != 3:
        raise UserError(f"{name} has shape {routes.shape}: must be tokens x layers x k")
    if num_tokens is not None and len(routes) != num_tokens:
        hint = " (the last generated token is never run)" if len(routes) == num_tokens - 1 else ""
        raise UserError(f"{name} has {len(routes)} tokens, the prompt has {num_tokens}{hint}")
    if not len(routes):
        raise UserError(f"{name} has no tokens")
    routes = _with_experts(routes, num_layers, layers, all_layers, name)
    routes = _without_shared(routes, num_experts, k, name)
    _check_ids(routes, num_experts, name)
    return routes.astype(np.int32)


def replay_recorded(
    config: GateConfig,
    routes: Int[np.ndarray, "t l k"],
    *,
    num_tokens: int | None = None,
    weight: Float[np.ndarray, "t l k"] | None = None,
    tokens: Bool[np.ndarray, " t2"] | None = None,
) -> RoutingEdit:
    """The edit that replays recorded routes: leaves [l #t ...], for a prompt of num_tokens.

    Args:
      config: the model's gate.
      routes: of `read_routes`; they are those of the first t tokens.
      num_tokens: of the prompt; the tokens after the recorded ones (an engine's last) are routed as
        usual. None: t.
      weight: recorded weights; None: what the gate gives these experts now.
      tokens: scope, over num_tokens.

    Raises:
      UserError: more rows than tokens.
      ValueError: as `interventions.replay`.
    """
    missing = 0 if num_tokens is None else num_tokens - len(routes)
    if missing < 0:
        raise UserError(f"routes have {len(routes)} tokens, the prompt has {num_tokens}")
    rest = ((0, missing), (0, 0), (0, 0))
    expert = np.pad(routes, rest, constant_values=KEEP)
    if weight is not None:
        weight = np.pad(weight, rest, constant_values=np.nan)
    return replay(config, expert, weight=weight, tokens=tokens)


def reason(error: BaseException) -> str:
    """An error of `UNREADABLE` in one line."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _with_experts(
    routes: np.ndarray,
    num_layers: int,
    layers: Sequence[int] | None,
    all_layers: int | None,
    name: str,
) -> np.ndarray:
    """The recorded layers that have experts."""
    there = routes.shape[1]
    if layers is not None and (all_layers is None or there == all_layers):
        beyond = [m for m in layers if not 0 <= m < there]
        if beyond:
            raise UserError(f"{name} has {there} layers: there is no layer {beyond[0]}")
        if all_layers is not None:
            _check_dense(routes, layers, name)
        routes = routes[:, list(layers)]
    if routes.shape[1] != num_layers:
        of = f", {all_layers} in all" if all_layers not in (None, num_layers) else ""
        raise UserError(f"{name} has {there} layers, the model has {num_layers} with experts{of}")
    return routes


def _check_dense(routes: np.ndarray, layers: Sequence[int], name: str) -> None:
    """Layers without experts hold one number throughout: engines never write there."""
    for layer in sorted(set(range(routes.shape[1])) - set(layers)):
        mine = routes[:, layer]
        if mine.size and (mine != mine.flat[0]).any():
            raise UserError(
                f"{name} has experts in layer {layer}, where the model has none: give the routes "
                "of this model, a row for each of its layers or for each with experts"
            )


def _load(path: Path, name: str) -> Any:
    """What the file holds, without unpickling anything."""
    if path.suffix not in (".npy", ".npz", ".json"):
        raise UserError(f"{name} must be a .npy, .npz or .json file")
    if path.suffix == ".json":
        return parse(read_text(path), name)
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            if len(loaded.files) != 1:
                held = ", ".join(loaded.files) or "nothing"
                raise UserError(f"{name}: the .npz must hold one array, it holds {held}")
            return loaded[loaded.files[0]]
    except UNREADABLE as error:
        raise UserError(f"{name} can't be read: {reason(error)}") from error


def _whole_numbers(source: Any, name: str) -> np.ndarray:
    """As an array of whole numbers."""
    try:
        array = np.asarray(source)
    except (ValueError, OverflowError) as error:
        raise UserError(f"{name} must be tokens x layers x k, every row as long") from error
    if array.dtype.kind not in "iu":
        if not array.size:
            raise UserError(f"{name} has no tokens")
        raise UserError(f"{name} holds {array.dtype}: must be whole numbers, ids of experts")
    return array


def _without_shared(routes: np.ndarray, num_experts: int, k: int, name: str) -> np.ndarray:
    """Without the columns of shared experts.

    With more than 255 experts 255 is also an expert's id: there only columns beyond k can be such.
    """
    columns = routes.shape[2]
    shared = np.all(routes == SHARED, axis=(0, 1))
    if columns == k and num_experts > SHARED:
        shared[:] = False
    routes = routes[:, :, ~shared]
    if routes.shape[2] != k:
        gone = f", {shared.sum()} of them of shared experts ({SHARED})" if shared.any() else ""
        raise UserError(f"{name} has {columns} choices a token{gone}; the gate has k={k}")
    if num_experts <= SHARED and (routes == SHARED).any():
        t, layer, slot = np.argwhere(routes == SHARED)[0]
        raise UserError(
            f"{name}: token {t}, layer {layer}, choice {slot} is {SHARED}, SGLang's mark of a "
            f"shared expert, but the choice isn't {SHARED} throughout"
        )
    return routes


def _check_ids(routes: np.ndarray, num_experts: int, name: str) -> None:
    """Range, zeros, repetition."""
    if num_experts > 1 and routes.size > 1 and not routes.any():
        raise UserError(
            f"{name} is all zero: the engine recorded nothing (a known fault of vllm-ascend)"
        )
    wrong = (routes < 0) | (routes >= num_experts)
    if wrong.any():
        t, layer, slot = np.argwhere(wrong)[0]
        raise UserError(
            f"{name}: token {t}, layer {layer} has expert {routes[t, layer, slot]}: ids go from 0 "
            f"to {num_experts - 1}"
        )
    line = np.sort(routes, axis=2)
    twice = np.any(line[..., 1:] == line[..., :-1], axis=2)
    if twice.any():
        t, layer = np.argwhere(twice)[0]
        raise UserError(
            f"{name}: token {t}, layer {layer} has an expert twice: {routes[t, layer].tolist()}"
            f" ({twice.sum()} such rows)"
        )
