"""The numbers that tell causal language models apart: Llama, Mixtral, OLMoE, Qwen and the like."""

import dataclasses
import math

from moe_kernels import ACTIVATIONS

from moe_jax.errors import UserError
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

    def validate(self, path: str) -> None:
        """Check every field; a UserError names the first wrong one as `path.field`."""
        if self.scaling not in ROPE_SCALINGS:
            raise UserError(
                f"{path}.scaling={self.scaling!r} is not one of {', '.join(ROPE_SCALINGS)}"
            )
        for name in ("theta", "factor", "low_factor", "high_factor", "original_length"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise UserError(f"{path}.{name}={value} must be more than 0")
        if self.scaling == "llama3" and not self.low_factor < self.high_factor:
            raise UserError(
                f"{path}.low_factor={self.low_factor} must be less than "
                f"high_factor={self.high_factor}"
            )


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

    def validate(self, path: str = "model") -> None:
        """Check every field, alone and together.

        Raises:
          UserError: one is wrong; the message names it.
        """
        for name in (
            *("vocab_size", "d_model", "num_layers", "num_heads", "num_kv_heads", "d_ff"),
            *("head_dim", "max_length", "window"),
        ):
            value = getattr(self, name)
            optional = name in ("head_dim", "window")
            if value is None and optional:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UserError(f"{path}.{name}={value!r} must be a whole number >= 1")
        if self.head_dim is None and self.d_model % self.num_heads:
            raise UserError(
                f"{path}.num_heads={self.num_heads} does not divide d_model={self.d_model}"
            )
        if self.num_heads % self.num_kv_heads:
            raise UserError(
                f"{path}.num_kv_heads={self.num_kv_heads} does not divide "
                f"num_heads={self.num_heads}"
            )
        if self.width_of_head % 2:
            raise UserError(f"{path}: heads of width {self.width_of_head}; rotation needs even")
        for name, allowed in (
            ("activation", tuple(ACTIVATIONS)),
            ("qk_norm", QK_NORMS),
            ("dtype", DTYPES),
        ):
            if getattr(self, name) not in allowed:
                raise UserError(
                    f"{path}.{name}={getattr(self, name)!r} is not one of {', '.join(allowed)}"
                )
        for name in ("norm_eps", "clip_qkv"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"{path}.{name}={value} must be more than 0")
        self.rope.validate(f"{path}.rope")
        self._validate_experts(path)

    def _validate_experts(self, path: str) -> None:
        if self.experts is None:
            return
        self.experts.gate.validate(f"{path}.experts.gate.")
        self.experts.options.validate(f"{path}.experts.options")
        if self.experts.gate.choice != "token":
            raise UserError(
                f"{path}.experts.gate.choice={self.experts.gate.choice!r} must be 'token': experts "
                "that choose among tokens see those that come later"
            )
        for name in ("d_expert", "d_shared"):
            value = getattr(self.experts, name)
            if value is not None and value < 1:
                raise UserError(f"{path}.experts.{name}={value} must be at least 1")
        if self.experts.shared_gate and self.experts.d_shared is None:
            raise UserError(f"{path}.experts.shared_gate=True needs {path}.experts.d_shared")
        layers = self.expert_layers
        if len(set(layers)) < len(layers) or any(not 0 <= i < self.num_layers for i in layers):
            raise UserError(
                f"{path}.experts.layers={self.experts.layers} must be different layers from 0 to "
                f"{self.num_layers - 1}"
            )
        if not layers:
            raise UserError(f"{path}.experts.layers=() has no layer; use experts=None for dense")
