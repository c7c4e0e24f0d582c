"""The settings of a rationale run."""

import dataclasses
from typing import ClassVar

from moe_jax.common.checks import (
    flag,
    joined,
    nested,
    number,
    one_of,
    setting,
    several,
    text,
    whole,
    wrong,
)
from moe_jax.common.files import local
from moe_jax.data.corpus import CorpusConfig
from moe_jax.models.pretrained import DEFAULT_ENCODER
from moe_jax.training.config import TrainConfig

POOLS = ("window", "token")
TRANSFORMS = ("none", "linear", "mlp")
NORMALISATIONS = ("sum", "mean", "length", "unit")
SMOOTHINGS = ("none", "gaussian", "markov")
DECODERS = ("none", "linear", "mlp")
STARTS = ("kmeans", "random")


@dataclasses.dataclass(kw_only=True)
class ContextConfig:
    """The contextualiser Enc(x): which encoder, and where it looks.

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

    def validate(self, path: str = "") -> None:
        """Check every field; a UserError names the first wrong one as `path.field`."""
        text(path, "encoder", self.encoder)
        local(self.encoder, joined(path, "encoder"))
        whole(path, "layer", self.layer, why="-1: the last")
        flag(path, "train_encoder", self.train_encoder)
        if self.cache is not None:
            text(path, "cache", self.cache)
            local(self.cache, joined(path, "cache"))
        self._validate_windows(path)
        one_of(path, "pool", self.pool, POOLS)
        whole(path, "max_tokens", self.max_tokens, max(2, *self.windows))

    def _validate_windows(self, path: str) -> None:
        several(path, "windows", self.windows)
        if not self.windows:
            raise wrong(path, "windows", (), "name a window, such as (12,)")
        for width in self.windows:
            if isinstance(width, bool) or not isinstance(width, int) or width < 0 or width == 1:
                must = "hold widths of 2 or more tokens, or 0 for the whole text"
                raise wrong(path, "windows", self.windows, must)
        whole(path, "stride", self.stride, 1)
        narrowest = min([width for width in self.windows if width] or [self.stride])
        if self.stride > narrowest:
            must = (
                f"be at most the narrowest of {setting(path, 'windows', self.windows)}: "
                "tokens between windows would have no state"
            )
            raise wrong(path, "stride", self.stride, must)


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
      normalise: z_k as the "sum" of the routed states (the formula as written), their "mean", the
        sum over the "length" of the text, or of "unit" length.
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

    def validate(self, path: str = "") -> None:
        """Check every field; a UserError names the first wrong one as `path.field`."""
        whole(path, "num_factors", self.num_factors, 2, why="1: all tokens would have the same")
        whole(path, "k", self.k, 0, self.num_factors, why=f"{joined(path, 'num_factors')}; 0: all")
        for name in ("temperature", "width"):
            number(path, name, getattr(self, name), above=0)
        flag(path, "centre", self.centre)
        number(path, "stay", self.stay, above=0, below=1)
        one_of(path, "smoothing", self.smoothing, SMOOTHINGS)
        one_of(path, "normalise", self.normalise, NORMALISATIONS)
        one_of(path, "transform", self.transform, TRANSFORMS)
        one_of(path, "decoder", self.decoder, DECODERS)
        one_of(path, "start", self.start, STARTS)
        whole(path, "factor_dim", self.factor_dim, 0)
        if self.factor_dim and self.transform == "none":
            must = f"come with {joined(path, 'transform')}=linear or mlp"
            raise wrong(path, "factor_dim", self.factor_dim, must)
        number(path, "words", self.words, low=0)
        whole(path, "restarts", self.restarts, 1)
        whole(path, "word_rounds", self.word_rounds, 0)


@dataclasses.dataclass(kw_only=True)
class LossWeights:
    """The weights of the six losses (docs/rationale.md); 0 switches a loss off."""

    sentence: float = 1.0
    token: float = 0.0
    entropy: float = 0.0
    overlap: float = 0.0
    diversity: float = 0.0
    balance: float = 0.0

    def validate(self, path: str = "") -> None:
        """Check every field; a UserError names the first wrong one as `path.field`."""
        for field in dataclasses.fields(self):
            number(path, field.name, getattr(self, field.name), low=0)


@dataclasses.dataclass(kw_only=True)
class RationaleConfig:
    """A run of the rationale system (docs/rationale.md).

    Attributes:
      data: the texts.
      context: the contextualiser.
      model: gate, factors, reconstruction.
      losses: the weights of the six losses.
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

    def validate(self, path: str = "") -> None:
        """Check every field.

        Raises:
          UserError: the first wrong one, by its dotted path.
        """
        nested(path, "data", self.data, CorpusConfig)
        nested(path, "context", self.context, ContextConfig)
        nested(path, "model", self.model, ModelConfig)
        nested(path, "losses", self.losses, LossWeights)
        if self.losses.token and self.model.decoder == "none":
            must = f"come with a decoder: {joined(path, 'model.decoder')}=linear or mlp"
            raise wrong(joined(path, "losses"), "token", self.losses.token, must)
        whole(path, "batch_size", self.batch_size, 1)
        flag(path, "baselines", self.baselines)
        nested(path, "train", self.train, TrainConfig)
