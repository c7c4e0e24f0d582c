"""Names of the tensors of Hugging Face's Switch Transformers, and what they are called here."""

from collections.abc import Callable, Collection, Iterator

import jax.numpy as jnp
import numpy as np
from jaxtyping import DTypeLike

from moe_jax.errors import UserError
from moe_jax.models.hub_tensors import (
    Path,
    Source,
    check_count,
    check_names,
    equal,
    from_tensors,
    to_tensors,
)
from moe_jax.models.switch import SwitchTransformer
from moe_jax.models.switch_config import SwitchConfig

SHARED = "shared.weight"
_ENCODER, _DECODER, _OUT = (
    "encoder.embed_tokens.weight",
    "decoder.embed_tokens.weight",
    "lm_head.weight",
)


def sources(config: SwitchConfig) -> dict[Path, Source]:
    """For each parameter of SwitchTransformer(config), the tensors that it is made of."""
    if config.tie_embeddings:
        table: dict[Path, Source] = {("token", "embedding"): Source((SHARED,))}
    else:
        table = {
            ("token", "embedding"): Source((_ENCODER,)),
            ("decoder_token", "embedding"): Source((_DECODER,)),
            ("out", "kernel"): Source((_OUT,), "matrix"),
        }
    for stack, layers, sparse in (
        ("encoder", config.num_layers, config.encoder_layers),
        ("decoder", config.num_decoder_layers, config.decoder_layers),
    ):
        first = f"{stack}.block.0.layer.0.SelfAttention"
        table |= {
            (stack, "position", "table_nh"): Source((f"{first}.relative_attention_bias.weight",)),
            (stack, "norm", "scale"): Source((f"{stack}.final_layer_norm.weight",)),
        }
        for i in range(layers):
            layer = _layer(config, f"{stack}.block.{i}.layer", stack == "decoder", i in sparse)
            table |= {(stack, "layers", i, *path): source for path, source in layer.items()}
    return table


def _layer(config: SwitchConfig, theirs: str, decoder: bool, sparse: bool) -> dict[Path, Source]:
    """Their layers of a block are numbered: self-attention, cross-attention in a decoder, ffn."""
    parts = [("self", "SelfAttention")] + ([("cross", "EncDecAttention")] if decoder else [])
    table: dict[Path, Source] = {}
    for j, (ours, name) in enumerate(parts):
        table[(f"{ours}_norm", "scale")] = Source((f"{theirs}.{j}.layer_norm.weight",))
        for matrix, letter in (("q", "q"), ("k", "k"), ("v", "v"), ("out", "o")):
            full = f"{theirs}.{j}.{name}.{letter}.weight"
            table[(f"{ours}_attention", matrix, "kernel")] = Source((full,), "matrix")
    last = f"{theirs}.{len(parts)}"
    table[("ffn_norm", "scale")] = Source((f"{last}.layer_norm.weight",))
    if not sparse:
        for ours, name in (("w_in_df", "wi"), ("w_out_fd", "wo")):
            table[("ffn", ours)] = Source((f"{last}.mlp.{name}.weight",), "matrix")
        return table
    router = f"{last}.mlp.router.classifier"
    table[("ffn", "gate", "w_de")] = Source((f"{router}.weight",), "matrix")
    if config.router_bias:
        table[("ffn", "gate", "b_e")] = Source((f"{router}.bias",))
    for ours, name in (("w_in_edf", "wi"), ("w_out_efd", "wo")):
        each = (
            f"{last}.mlp.experts.expert_{e}.{name}.weight" for e in range(config.gate.num_experts)
        )
        table[("ffn", ours)] = Source(tuple(each), "matrix", stacked=True)
    return table


def build(
    config: SwitchConfig,
    found: Collection[str],
    read: Callable[[str], np.ndarray],
    where: str,
    *,
    param_dtype: DTypeLike = jnp.float32,
) -> SwitchTransformer:
    """Makes the model from a folder's tensors.

    Args:
      config: the model's shape.
      found: names of the tensors that there are.
      read: gives the tensor of a name.
      where: the folder, for messages.
      param_dtype: of the parameters; those of gates are float32 always.

    Raises:
      UserError: a tensor is missing, unknown, or has another shape than the config says; or tied
        tables that differ.
    """
    found = set(found)
    check_count(config.num_layers + config.num_decoder_layers, "layers", found, where)
    check_count(config.gate.num_experts, "experts", found, where)
    table = sources(config)
    renamed = _tables(config, found, read, where)
    table = {
        path: source._replace(names=tuple(renamed.get(n, n) for n in source.names))
        for path, source in table.items()
    }
    wanted = {name for source in table.values() for name in source.names}
    check_names(wanted, found, where, ignored=(SHARED, _ENCODER, _DECODER, _OUT))
    return from_tensors(
        lambda rngs: SwitchTransformer(config, rngs=rngs),
        table,
        read,
        where,
        param_dtype=param_dtype,
    )


def _tables(
    config: SwitchConfig, found: set[str], read: Callable[[str], np.ndarray], where: str
) -> dict[str, str]:
    """Names of embedding tables under which they are found, where these are others.

    Tied tables may be written several times, under any of their names. Untied ones were all
    called "shared" (but the output layer's) before transformers 5 told the two stacks' apart.
    """
    if not config.tie_embeddings:
        return {n: SHARED for n in (_ENCODER, _DECODER) if n not in found and SHARED in found}
    there = [n for n in (SHARED, _ENCODER, _DECODER, _OUT) if n in found]
    for name in there[1:]:
        if not equal(read(there[0]), read(name)):
            raise UserError(
                f"{where}: its config says tie_word_embeddings=true, but {name} is not equal to "
                f"{there[0]}"
            )
    return {SHARED: there[0]} if there else {}


def tensors(model: SwitchTransformer) -> Iterator[tuple[str, np.ndarray]]:
    """The model's parameters as their tensors, by name, one after the other.

    Untied models have the encoder's table a second time as "shared", which transformers asks for
    and does not use.
    """
    for name, part in to_tensors(model, sources(model.config)):
        yield name, part
        if name == _ENCODER:
            yield SHARED, part
