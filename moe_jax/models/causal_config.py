"""The numbers that tell causal language models apart: Llama, Mixtral, OLMoE, Qwen and the like."""

import dataclasses

from moe_kernels import ACTIVATIONS

from moe_jax.common.checks import (
    flag,
    joined,
    nested,
    number,
    one_of,
    setting,
    several,
    whole,
    wrong,
)
from moe_jax.gating import GateConfig
from moe_jax.layers import ExpertOptions

ROPE_SCALINGS = ("none", "linear", "llama3")
QK_NORMS = ("none", "head", "all")
DTYPES = ("float32", "bfloat16", "float16")


@dataclasses.dataclass(kw_only=True)
class RopeConfig:
    """Rotary positions (Su et al. 2021), and how they are stretched to longer contexts.

    Attributes:
      theta: base of the wavelengths.
      scaling: "none"; "linear": all frequencies divided by `factor`; "llama3": low ones divided by
        it, high ones kept, those between blended (Llama 3.1).
      factor: see there.
      low_factor: "llama3": wavelengths above original_length / low_factor are low frequencies.
      high_factor: "llama3": those below original_length / high_factor are high ones.
      original_length: "llama3": context length before stretching.
    """

    theta: float = 10_000.0
    scaling: str = "none"
    factor: float = 1.0
    low_factor: float = 1.0
    high_factor: float = 4.0
    original_length: int = 8192

    def validate(self, path: str = "") -> None:
        """Check every field; a UserError names the first wrong one as `path.field`."""
        one_of(path, "scaling", self.scaling, ROPE_SCALINGS)
        for name in ("theta", "factor", "low_factor", "high_factor", "original_length"):
            number(path, name, getattr(self, name), above=0)
        if self.scaling == "llama3" and not self.low_factor < self.high_factor:
            high = setting(path, "high_factor", self.high_factor)
            raise wrong(path, "low_factor", self.low_factor, f"be less than {high}")


@dataclasses.dataclass(kw_only=True)
class ExpertsConfig:
    """The mixture in the layers that have one.

    Attributes:
      gate: how experts are chosen.
      d_expert: hidden width of each expert.
      d_shared: hidden width of the expert that sees every token; None: there is none.
      shared_gate: weight the shared expert by a sigmoid of the token (Qwen2-MoE).
      layers: which layers have the mixture, from 0; None: all. The others are dense.
      selection_bias: the gates keep a bias on the choice alone, zero at first, for balancing
        without a loss: `gating.update_selection_bias` with the counts of each step.
      options: how the experts are computed: backend, recomputation, exchange between devices.
    """

    gate: GateConfig = dataclasses.field(default_factory=GateConfig)
    d_expert: int = 256
    d_shared: int | None = None
    shared_gate: bool = False
    layers: tuple[int, ...] | None = None
    selection_bias: bool = False
    options: ExpertOptions = dataclasses.field(default_factory=ExpertOptions)

    def validate(self, path: str = "") -> None:
        """Check every field; a UserError names the first wrong one as `path.field`."""
        nested(path, "gate", self.gate, GateConfig)
        check_causal(joined(path, "gate"), self.gate)
        nested(path, "options", self.options, ExpertOptions)
        flag(path, "selection_bias", self.selection_bias)
        whole(path, "d_expert", self.d_expert, 1)
        whole(path, "d_shared", self.d_shared, 1, none="no shared expert")
        flag(path, "shared_gate", self.shared_gate)
        if self.shared_gate and self.d_shared is None:
            raise wrong(path, "shared_gate", True, f"come with {joined(path, 'd_shared')}")
        if self.layers is not None:
            several(path, "layers", self.layers)
            for i, layer in enumerate(self.layers):
                whole(path, f"layers[{i}]", layer, 0)
            if not self.layers:
                raise wrong(path, "layers", (), "name a layer (experts=None: all layers are dense)")


@dataclasses.dataclass(kw_only=True)
class CausalConfig:
    """A pre-norm Transformer decoder with RMS norms, rotary positions and gated linear units.

    Attributes:
      vocab_size: rows of the embedding table.
      d_model: width of the states.
      num_layers: decoder layers.
      num_heads: query heads.
      num_kv_heads: key and value heads, each shared by num_heads / num_kv_heads query heads.
      head_dim: width of a head; None: d_model / num_heads.
      d_ff: hidden width of the dense layers.
      experts: the mixture; None: all layers are dense.
      activation: of the gated linear units.
      norm_eps: epsilon of every RMS norm.
      rope: rotary positions.
      max_length: the longest context.
      window: a position sees itself and this many less one before it; None: all before it.
      qkv_bias: biases on queries, keys and values.
      out_bias: a bias on the attention's output.
      qk_norm: RMS norm of queries and keys before the rotation: "none"; "head", of each head
        (Qwen3); "all", of all heads together (OLMoE).
      clip_qkv: queries, keys and values are clipped to [-clip_qkv, clip_qkv]; None: not.
      tie_embeddings: the output layer is the embedding table.
      dtype: what the layers compute in. Norms, softmax, router and logits are float32.
    """

    vocab_size: int = 256
    d_model: int = 128
    num_layers: int = 4
    num_heads: int = 4
    num_kv_heads: int = 4
    head_dim: int | None = None
    d_ff: int = 384
    experts: ExpertsConfig | None = None
    activation: str = "silu"
    norm_eps: float = 1e-5
    rope: RopeConfig = dataclasses.field(default_factory=RopeConfig)
    max_length: int = 2048
    window: int | None = None
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: str = "none"
    clip_qkv: float | None = None
    tie_embeddings: bool = False
    dtype: str = "float32"

    @property
    def width_of_head(self) -> int:
        """`head_dim`, or what follows from the others."""
        return self.d_model // self.num_heads if self.head_dim is None else self.head_dim

    @property
    def expert_layers(self) -> tuple[int, ...]:
        """Layers with a mixture, in order; their routings are stacked in this order."""
        if self.experts is None:
            return ()
        chosen = self.experts.layers
        return tuple(range(self.num_layers)) if chosen is None else tuple(sorted(chosen))

    def validate(self, path: str = "") -> None:
        """Check every field, alone and together.

        Raises:
          UserError: one is wrong; the message names it.
        """
        for name in ("vocab_size", "d_model", "num_layers", "num_heads", "num_kv_heads", "d_ff"):
            whole(path, name, getattr(self, name), 1)
        whole(path, "max_length", self.max_length, 1)
        whole(path, "window", self.window, 1, none="all before it")
        self._validate_heads(path)
        one_of(path, "activation", self.activation, ACTIVATIONS)
        one_of(path, "qk_norm", self.qk_norm, QK_NORMS)
        one_of(path, "dtype", self.dtype, DTYPES)
        for name in ("qkv_bias", "out_bias", "tie_embeddings"):
            flag(path, name, getattr(self, name))
        number(path, "norm_eps", self.norm_eps, above=0)
        number(path, "clip_qkv", self.clip_qkv, above=0, none="not clipped")
        nested(path, "rope", self.rope, RopeConfig)
        if self.experts is not None:
            nested(path, "experts", self.experts, ExpertsConfig)
            self._validate_layers(joined(path, "experts"), self.experts.layers or ())

    def _validate_heads(self, path: str) -> None:
        heads = setting(path, "num_heads", self.num_heads)
        whole(path, "head_dim", self.head_dim, 1, none="d_model / num_heads")
        if self.head_dim is None and self.d_model % self.num_heads:
            width = setting(path, "d_model", self.d_model)
            raise wrong(path, "num_heads", self.num_heads, f"divide {width}")
        if self.num_heads % self.num_kv_heads:
            raise wrong(path, "num_kv_heads", self.num_kv_heads, f"divide {heads}")
        if self.width_of_head % 2:
            must = f"give heads of an even width, which rotation needs, not {self.width_of_head}"
            if self.head_dim is None:
                raise wrong(path, "num_heads", self.num_heads, must)
            raise wrong(path, "head_dim", self.head_dim, must)

    def _validate_layers(self, path: str, layers: tuple[int, ...]) -> None:
        if len(set(layers)) < len(layers) or any(i >= self.num_layers for i in layers):
            must = f"be different layers from 0 to {self.num_layers - 1}"
            raise wrong(path, "layers", layers, must)


def check_causal(path: str, gate: GateConfig) -> None:
    """Check that a gate can stand in a decoder.

    Raises:
      UserError: its experts choose among tokens.
    """
    if gate.choice != "token":
        must = "be 'token': experts that choose among tokens see those that come later"
        raise wrong(path, "choice", gate.choice, must)
