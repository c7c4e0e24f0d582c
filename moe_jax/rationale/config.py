"""The settings of a rationale run."""

import dataclasses
import math
from typing import TYPE_CHECKING, Any, ClassVar

from moe_jax.common.files import local
from moe_jax.data.corpus import CorpusConfig
from moe_jax.errors import UserError
from moe_jax.losses import LossWeights
from moe_jax.models.pretrained import DEFAULT_ENCODER
from moe_jax.training.config import TrainConfig

if TYPE_CHECKING:
    from moe_jax.rationale.task import RationaleTask

POOLS = ("window", "token")
TRANSFORMS = ("none", "linear", "mlp")
NORMALISATIONS = ("sum", "mean", "length", "unit")
SMOOTHINGS = ("none", "gaussian", "markov")
DECODERS = ("none", "linear", "mlp")
STARTS = ("kmeans", "random")


@dataclasses.dataclass(kw_only=True)
class ContextConfig:
    """Enc(x) of the seed: which encoder, and where it looks.

    Attributes:
      encoder: "all-MiniLM-L6-v2" (embedded) or a folder with a Hugging Face encoder.
      layer: whose states: 0 the embeddings, -1 the last layer.
      train_encoder: train the encoder along (slow); False = its states are computed once.
      windows: widths in tokens. Each text is cut into overlapping windows of this width and
        every window is encoded alone; a token's state is a mean over the windows that hold it,
        and then over the widths. Width 0 is the whole text as one input.
      stride: from the start of one window to the next, in tokens.
      pool: "window" = the mean state of each window (as Sentence-BERT pools, unit length);
        "token" = the token's own state in each window.
      max_tokens: texts with more tokens are worked through in pieces of at most so many.
      cache: folder for computed states, reused by later runs on the same texts and settings;
        None = keep them in memory.
    """

    encoder: str = DEFAULT_ENCODER
    layer: int = -1
    train_encoder: bool = False
    windows: tuple[int, ...] = (12,)
    stride: int = 2
    pool: str = "window"
    max_tokens: int = 256
    cache: str | None = None


@dataclasses.dataclass(kw_only=True)
class ModelConfig:
    """Gate, factors and reconstruction.

    Attributes:
      num_factors: K, 2 or more.
      k: factors per token: 0 = all of them (dense), else the k most probable, their
        probabilities brought to the sum 1 (sparse).
      temperature: divides the logits W_g h of the gate.
      centre: subtract the training tokens' mean state and bring states to unit length.
      smoothing: how the gate sees its neighbours: "none"; "gaussian" = logits averaged over
        neighbours; "markov" = a chain that keeps its factor from token to token with
        probability `stay`.
      width: standard deviation of the Gaussian, in tokens.
      stay: probability that the next token has the same factor, before training.
      normalise: z_k as the "sum" of the routed states (the seed's), their "mean", the sum over
        the "length" of the text, or of "unit" length.
      transform: f_k: "none", "linear" or "mlp" (one hidden layer).
      factor_dim: width of the transformed z_k; 0 = as wide as the states.
      decoder: g, that restores token states: "none", "linear" or "mlp".
      words: weight of the token's own word in the gate's logits, beside its contextual state:
        0 = none. It tells neighbours apart whose windows overlap.
      start: the gate before training: "kmeans" on training states, or "random".
      restarts: runs of k-means, of which the best is kept.
      word_rounds: how often the words' evidence is estimated from the gate's own assignment of
        the training tokens (with start="kmeans"), before training.
    """

    num_factors: int = 12
    k: int = 0
    temperature: float = 0.5
    centre: bool = True
    smoothing: str = "markov"
    width: float = 2.0
    stay: float = 0.94
    normalise: str = "length"
    transform: str = "none"
    factor_dim: int = 0
    decoder: str = "none"
    words: float = 0.6
    start: str = "kmeans"
    restarts: int = 16
    word_rounds: int = 2


@dataclasses.dataclass(kw_only=True)
class RationaleConfig:
    """A run of the rationale system (seed 000).

    Attributes:
      data: the texts.
      context: the contextualiser.
      model: gate, factors, reconstruction.
      losses: the weights lambda of the six losses.
      batch_size: texts (or pieces of long texts) in a training step.
      baselines: also score majority, random, k-means and NMF in an evaluation.
      train: steps, learning rate, checkpoints.
    """

    system: ClassVar[str] = "rationale"

    data: CorpusConfig = dataclasses.field(default_factory=CorpusConfig)
    context: ContextConfig = dataclasses.field(default_factory=ContextConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    losses: LossWeights = dataclasses.field(default_factory=LossWeights)
    batch_size: int = 64
    baselines: bool = True
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)

    def validate(self) -> None:
        """Check every field.

        Raises:
          UserError: the first wrong one, by its dotted path.
        """
        try:
            self.data.validate()
        except UserError as error:
            # The corpus names its fields as its own; here they are data.*.
            raise UserError(str(error).replace("corpus.", "data.", 1)) from None
        _validate_context(self.context)
        _validate_model(self.model)
        self.losses.validate("losses.")
        if self.losses.token and self.model.decoder == "none":
            raise UserError(
                f"losses.token={self.losses.token} needs a decoder: model.decoder=linear or mlp"
            )
        _at_least("batch_size", self.batch_size, 1)
        self.train.validate("train")

    def make_task(self) -> "RationaleTask":
        """The task that this config describes; loads the encoder."""
        from moe_jax.rationale.task import RationaleTask

        return RationaleTask(self)


def _validate_context(context: ContextConfig) -> None:
    local(context.encoder, "context.encoder")
    if context.cache is not None:
        local(context.cache, "context.cache")
    if not context.windows:
        raise UserError("context.windows=() names no window; (12,) would be right")
    for width in context.windows:
        if isinstance(width, bool) or not isinstance(width, int) or width < 0 or width == 1:
            raise UserError(
                f"context.windows={context.windows}: every width must be 2 or more tokens, "
                "or 0 for the whole text"
            )
    _at_least("context.stride", context.stride, 1)
    short = min([width for width in context.windows if width] or [context.stride])
    if context.stride > short:
        raise UserError(
            f"context.stride={context.stride} is more than the narrowest of context.windows="
            f"{context.windows}: tokens between windows would have no state"
        )
    _one_of("context.pool", context.pool, POOLS)
    _at_least("context.max_tokens", context.max_tokens, max(2, *context.windows))


def _validate_model(model: ModelConfig) -> None:
    _at_least("model.num_factors", model.num_factors, 1)
    if model.num_factors == 1:
        raise UserError(
            "model.num_factors=1 gives every token to the same factor: 2 or more are needed"
        )
    _at_least("model.k", model.k, 0)
    if model.k > model.num_factors:
        raise UserError(f"model.k={model.k} is more than model.num_factors={model.num_factors}")
    for name in ("temperature", "width"):
        value = getattr(model, name)
        if not 0 < value < math.inf:
            raise UserError(f"model.{name}={value} must be a finite number above 0")
    if not 0 < model.stay < 1:
        raise UserError(f"model.stay={model.stay} must be between 0 and 1")
    _one_of("model.smoothing", model.smoothing, SMOOTHINGS)
    _one_of("model.normalise", model.normalise, NORMALISATIONS)
    _one_of("model.transform", model.transform, TRANSFORMS)
    _one_of("model.decoder", model.decoder, DECODERS)
    _one_of("model.start", model.start, STARTS)
    _at_least("model.factor_dim", model.factor_dim, 0)
    if model.factor_dim and model.transform == "none":
        raise UserError(f"model.factor_dim={model.factor_dim} needs model.transform=linear or mlp")
    if not 0 <= model.words < math.inf:
        raise UserError(f"model.words={model.words} must be a finite number of at least 0")
    _at_least("model.restarts", model.restarts, 1)
    _at_least("model.word_rounds", model.word_rounds, 0)


def _at_least(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"{name}={value!r} must be a whole number of at least {least}")


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(f"{name}={value!r} must be one of {', '.join(allowed)}")
