"""Names of the tensors of Hugging Face's causal language models, and what they are called here."""

import dataclasses
import logging
from collections.abc import Callable, Collection, Iterator

import jax.numpy as jnp
import numpy as np
from jaxtyping import DTypeLike

from moe_jax.errors import UserError
from moe_jax.models.causal_config import CausalConfig
from moe_jax.models.causal_families import FfnNames
from moe_jax.models.causal_lm import CausalLM
from moe_jax.models.hub_tensors import (
    Path,
    Place,
    Source,
    check_count,
    check_names,
    equal,
    from_tensors,
    placed,
    to_tensors,
)
from moe_jax.models.tensor_files import FileTensors, Tensors

_log = logging.getLogger(__name__)
# Constants that older files carry; they are computed here.
_BUFFERS = ("rotary_emb.inv_freq",)
_TABLE, _OUT = "model.embed_tokens.weight", "lm_head.weight"


def sources(config: CausalConfig, names: FfnNames) -> dict[Path, Source]:
    """For each parameter of CausalLM(config), the tensors that it is made of."""
    table: dict[Path, Source] = {
        ("token", "embedding"): Source((_TABLE,)),
        ("norm", "scale"): Source(("model.norm.weight",)),
    }
    if not config.tie_embeddings:
        table[("out", "kernel")] = Source((_OUT,), "matrix")
    for i in range(config.num_layers):
        theirs = f"model.layers.{i}"
        layer: dict[Path, Source] = {
            ("attention_norm", "scale"): Source((f"{theirs}.input_layernorm.weight",)),
            ("ffn_norm", "scale"): Source((f"{theirs}.post_attention_layernorm.weight",)),
        }
        layer |= _attention(config, f"{theirs}.self_attn")
        if i in config.expert_layers:
            layer |= _mixture(config, f"{theirs}.{names.moe}", names)
        else:
            layer |= _dense((), f"{theirs}.mlp", FfnNames())
        table |= {("layers", i, *path): source for path, source in layer.items()}
    return table


def _attention(config: CausalConfig, theirs: str) -> dict[Path, Source]:
    table: dict[Path, Source] = {}
    for ours, name in (("q", "q_proj"), ("k", "k_proj"), ("v", "v_proj"), ("out", "o_proj")):
        table[("attention", ours, "kernel")] = Source((f"{theirs}.{name}.weight",), "matrix")
        if config.out_bias if ours == "out" else config.qkv_bias:
            table[("attention", ours, "bias")] = Source((f"{theirs}.{name}.bias",))
    if config.qk_norm != "none":
        for ours in ("q_norm", "k_norm"):
            table[("attention", ours, "scale")] = Source((f"{theirs}.{ours}.weight",))
    return table


def _dense(inner: Path, theirs: str, names: FfnNames) -> dict[Path, Source]:
    return {
        ("ffn", *inner, "w_in_df"): Source((f"{theirs}.{names.up}.weight",), "matrix"),
        ("ffn", *inner, "w_gate_df"): Source((f"{theirs}.{names.gate}.weight",), "matrix"),
        ("ffn", *inner, "w_out_fd"): Source((f"{theirs}.{names.down}.weight",), "matrix"),
    }


def _mixture(config: CausalConfig, theirs: str, names: FfnNames) -> dict[Path, Source]:
    experts = config.experts
    assert experts is not None
    table: dict[Path, Source] = {
        ("ffn", "gate", "w_de"): Source((f"{theirs}.gate.weight",), "matrix")
    }
    for ours, name in (
        ("w_in_edf", names.up),
        ("w_gate_edf", names.gate),
        ("w_out_efd", names.down),
    ):
        each = (f"{theirs}.experts.{e}.{name}.weight" for e in range(experts.gate.num_experts))
        table[("ffn", ours)] = Source(tuple(each), "matrix", stacked=True)
    if experts.d_shared is not None:
        table |= _dense(("shared",), f"{theirs}.shared_expert", FfnNames())
    if experts.shared_gate:
        table[("ffn", "shared_gate_d")] = Source((f"{theirs}.shared_expert_gate.weight",), "row")
    return table


def as_published(config: CausalConfig, names: FfnNames, found: FileTensors, where: str) -> Tensors:
    """The tensors of a folder under the names of the published files.

    transformers 5 keeps the experts of a layer as two tensors, [experts, 2 * width, hidden] (the
    rows of the gate, then those of up) and [experts, hidden, width], and writes them so with
    save_original_format=False; and it calls every mixture "mlp".

    Args:
      config: the model's shape.
      names: of the feed-forward tensors.
      found: what the files hold.
      where: the folder, for messages.

    Raises:
      UserError: a stack of experts has another shape than the config says, or a tensor is there
        twice, with two values.
    """
    check_count(config.num_layers, "layers", found.shapes, where)
    mixtures = {
        f"model.layers.{i}.mlp": f"model.layers.{i}.{names.moe}" for i in config.expert_layers
    }
    stacks = {
        f"{mixture}.experts.{stack}": tuple(
            f"{mixture}.experts.{{}}.{part}.weight" for part in parts
        )
        for mixture in mixtures.values()
        for stack, parts in (("gate_up_proj", (names.gate, names.up)), ("down_proj", (names.down,)))
    }
    places: list[tuple[str, Place]] = []
    for name, shape in found.shapes.items():
        start = ".".join(name.split(".", 4)[:4])
        ours = mixtures.get(start, start) + name.removeprefix(start)
        if ours in stacks:
            places += _slices(config, name, shape, stacks[ours], where)
        else:
            places.append((ours, Place(name)))
    if config.tie_embeddings and _TABLE not in found.shapes and _OUT in found.shapes:
        places.append((_TABLE, Place(_OUT)))
    return placed(found, places, where)


def _slices(
    config: CausalConfig, name: str, shape: tuple[int, ...], parts: tuple[str, ...], where: str
) -> Iterator[tuple[str, Place]]:
    """The experts' matrices in a stack of them, whose rows are those of the parts in turn."""
    experts = config.experts
    assert experts is not None
    rows = experts.d_expert if len(parts) > 1 else config.d_model
    columns = config.d_model if len(parts) > 1 else experts.d_expert
    wanted = (experts.gate.num_experts, len(parts) * rows, columns)
    if shape != wanted:
        raise UserError(f"{where}: {name} has shape {shape}, its config asks for {wanted}")
    for e in range(wanted[0]):
        for i, part in enumerate(parts):
            yield part.format(e), Place(name, (e, slice(i * rows, (i + 1) * rows)))


def with_own_output(config: CausalConfig, found: Tensors, where: str) -> CausalConfig:
    """The config, untied where the files have an output layer that isn't the embedding table.

    As transformers 5 has it: models that were trained on keep tie_word_embeddings=true of the one
    they began as.
    """
    if not config.tie_embeddings or not {_TABLE, _OUT} <= set(found.names):
        return config
    if equal(found.read(_TABLE), found.read(_OUT)):
        return config
    _log.warning(
        "%s: tie_word_embeddings=true, but %s is not equal to %s; it is taken as it is",
        *(where, _OUT, _TABLE),
    )
    return dataclasses.replace(config, tie_embeddings=False)


def build(
    config: CausalConfig,
    names: FfnNames,
    found: Collection[str],
    read: Callable[[str], np.ndarray],
    where: str,
    *,
    param_dtype: DTypeLike = jnp.float32,
) -> CausalLM:
    """Makes the model from a folder's tensors.

    Args:
      config: the model's shape.
      names: of the feed-forward tensors.
      found: names of the tensors that there are.
      read: gives the tensor of a name.
      where: the folder, for messages.
      param_dtype: of the parameters; those of gates are float32 always.

    Raises:
      UserError: a tensor is missing, unknown, or has another shape than the config says.
    """
    if config.experts is not None:
        check_count(config.experts.gate.num_experts, "experts", found, where)
    table = sources(config, names)
    wanted = {name for source in table.values() for name in source.names}
    there = {name for name in found if not name.endswith(_BUFFERS)}
    # Tied models may carry the output layer all the same: equal, as with_own_output saw.
    check_names(wanted, there, where, ignored=[_OUT] if config.tie_embeddings else [])
    return from_tensors(
        lambda rngs: CausalLM(config, rngs=rngs), table, read, where, param_dtype=param_dtype
    )


def tensors(model: CausalLM, names: FfnNames) -> Iterator[tuple[str, np.ndarray]]:
    """The model's parameters as their tensors, by name, one after the other.

    Args:
      model: any.
      names: of the feed-forward tensors.
    """
    return to_tensors(model, sources(model.config, names))
