"""GateConfig: what a gate does, as independent fields (no model names)."""

import dataclasses
import math
from fractions import Fraction

from moe_jax.errors import UserError

SCORES = ("softmax", "sigmoid", "sparsemixer")
GROUP_SCORES = ("max", "top2_sum")
CHOICES = ("token", "expert")
PRIORITIES = ("position", "score")


@dataclasses.dataclass(kw_only=True, unsafe_hash=True)
class GateConfig:
    """Everything about a gate but its parameters. The fields compose freely unless said otherwise.

    Known gates as fields (every one of them is a golden test; E and k are the model's own):

    ==================================  ============================================================
    dense (k = num_experts)             k=E
    Switch Transformer                  k=1, capacity=64, jitter=0.01; segments = the sequence's id
    Mixtral, HunYuan, DBRX, Qwen3-MoE   renormalise=True (Qwen3: as norm_topk_prob says)
    OLMoE, Qwen1.5/2-MoE, Jamba         (the defaults)
    DeepSeek-V2                         num_groups, groups_kept, group_score="max", scale
    DeepSeek-V3, GLM-4-MoE              score="sigmoid", bias=..., group_score="top2_sum",
                                        renormalise=True, renormalise_eps=1e-20, scale=2.5
    LFM2-MoE, MiniMax-M2                score="sigmoid", bias=..., renormalise=True
    gpt-oss, Granite-MoE, JetMoe        topk_first=True
    Llama-4                             score="sigmoid", topk_first=True, k=1
    Phi-3.5-MoE (evaluation)            score="sparsemixer"
    Shazeer 2017 noisy top-k            topk_first=True, learned_noise=True
    V-MoE                               noise_std=1/E, capacity_factor=1.05, priority="score"
    GShard top-2                        renormalise=True, capacity_factor=2.0
    expert choice (Zhou 2022)           choice="expert"
    ==================================  ============================================================

    Attributes:
        num_experts: E.
        k: experts per token. With choice="expert": how many experts a token has on average.
        score: "softmax" or "sigmoid" over the logits; "sparsemixer" (Liu et al. 2024, the
            evaluation form): the i-th choice has as weight its softmax among the experts not yet
            chosen whose logit is within the margin, (max - z_e) / max(|z_e|, max) <=
            2 sparsemixer_jitter; `Routing.probs` is the plain softmax then.
        topk_first: choose by the logits and score the chosen only (softmax over k of them), instead
            of choosing by the scores of all. For the sigmoid that changes nothing but ties of
            saturated scores. Not with "sparsemixer", which chooses by logits anyway.
        temperature: divides the logits before the score.
        renormalise: divide the weights of a token by (their sum + renormalise_eps).
        renormalise_eps: see there.
        scale: multiplies the weights, last.
        num_groups: experts form this many groups of neighbours; each token chooses within
            `groups_kept` of them.
        groups_kept: see there.
        group_score: how groups are compared: "max", the best score in the group (DeepSeek-V2), or
            "top2_sum", the sum of the best two (DeepSeek-V3).
        jitter: the input of the gate is multiplied by noise, uniform in [1-jitter, 1+jitter], when
            not deterministic (Switch). It acts before the logits exist, so `gate_logits` and
            `Gate` apply it; `route` sees only logits and does not.
        noise_std: standard deviation of Gaussian noise on the logits, when not deterministic.
        learned_noise: Gaussian noise of standard deviation softplus(noise_logits) on the logits,
            when not deterministic (Shazeer et al. 2017); `Gate` computes noise_logits = x W_noise.
        sparsemixer_jitter: see `score`.
        choice: "token": tokens choose experts. "expert": each expert chooses its `capacity` best
            tokens by score; `Routing` has num_experts slots for each token then, the unused ones
            holding the sentinel num_experts.
        capacity: most tokens an expert takes (from each segment, where segments are given).
        capacity_factor: the same as a factor of the even share: ceil(factor * k * n / E), n the
            number of real tokens (of the segment). Taken as the nearest fraction with a denominator
            up to 100. Both None: dropless (for choice="expert": factor 1).
        priority: who is served first where capacity binds: all first choices before all second
            choices in either case, and among them "position", the earlier token (GShard), or
            "score", the token of the larger weight (batch-prioritised routing, V-MoE).
    """

    num_experts: int = 8
    k: int = 2
    score: str = "softmax"
    topk_first: bool = False
    temperature: float = 1.0
    renormalise: bool = False
    renormalise_eps: float = 0.0
    scale: float = 1.0
    num_groups: int = 1
    groups_kept: int = 1
    group_score: str = "max"
    jitter: float = 0.0
    noise_std: float = 0.0
    learned_noise: bool = False
    sparsemixer_jitter: float = 0.01
    choice: str = "token"
    capacity: int | None = None
    capacity_factor: float | None = None
    priority: str = "position"

    @property
    def slots(self) -> int:
        """Columns of `Routing.expert` and `Routing.weight`: k, or num_experts for expert choice."""
        return self.num_experts if self.choice == "expert" else self.k

    @property
    def dropless(self) -> bool:
        """Whether no assignment can be dropped for want of capacity."""
        return self.choice == "token" and self.capacity is None and self.capacity_factor is None

    @property
    def random(self) -> bool:
        """Whether the gate draws random numbers when it is not deterministic."""
        return bool(self.jitter or self.noise_std or self.learned_noise)

    def share(self) -> Fraction:
        """Capacity per real token, capacity_factor * k / E, as an exact fraction."""
        factor = 1.0 if self.capacity_factor is None else self.capacity_factor
        return Fraction(factor).limit_denominator(100) * self.k / self.num_experts

    def validate(self, prefix: str = "") -> None:
        """Check the fields, alone and together.

        Args:
            prefix: the dotted path of this config, such as "model.gate.", for the message.

        Raises:
            UserError: a field is wrong; one line that names it, with its value and what is right.
        """
        self._validate_choices(prefix)
        self._validate_numbers(prefix)
        self._validate_groups(prefix)
        if self.score == "sparsemixer" and self.topk_first:
            raise UserError(f'{prefix}topk_first=True has no meaning with score="sparsemixer"')
        if self.choice == "expert":
            for name, plain in (("topk_first", False), ("num_groups", 1), ("priority", "position")):
                if getattr(self, name) != plain:
                    raise UserError(
                        f'{prefix}{name}={getattr(self, name)} has no meaning with choice="expert"'
                    )
            if self.score == "sparsemixer":
                raise UserError(f'{prefix}score=sparsemixer needs choice="token"')

    def _validate_choices(self, prefix: str) -> None:
        for name, allowed in (
            ("score", SCORES),
            ("group_score", GROUP_SCORES),
            ("choice", CHOICES),
            ("priority", PRIORITIES),
        ):
            if getattr(self, name) not in allowed:
                raise UserError(
                    f"{prefix}{name}={getattr(self, name)} is unknown: use {' or '.join(allowed)}"
                )

    def _validate_numbers(self, prefix: str) -> None:
        for name in ("num_experts", "k"):
            if getattr(self, name) < 1:
                raise UserError(f"{prefix}{name}={getattr(self, name)} must be at least 1")
        if self.k > self.num_experts:
            raise UserError(
                f"{prefix}k={self.k} is more than {prefix}num_experts={self.num_experts}"
            )
        for name, low, high in (
            ("temperature", 0, math.inf),
            ("scale", 0, math.inf),
            ("sparsemixer_jitter", 0, math.inf),
        ):
            if not low < getattr(self, name) < high:
                raise UserError(f"{prefix}{name}={getattr(self, name)} must be more than {low}")
        if not 0 <= self.jitter < 1:
            raise UserError(f"{prefix}jitter={self.jitter} must be in [0, 1)")
        for name in ("renormalise_eps", "noise_std"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"{prefix}{name}={getattr(self, name)} must be a number >= 0")
        if self.capacity is not None and self.capacity < 1:
            raise UserError(f"{prefix}capacity={self.capacity} must be at least 1 (None: dropless)")
        if self.capacity is not None and self.capacity_factor is not None:
            raise UserError(f"{prefix}capacity and {prefix}capacity_factor are both set: use one")
        if self.capacity_factor is not None and not 0.01 <= self.capacity_factor < math.inf:
            raise UserError(
                f"{prefix}capacity_factor={self.capacity_factor} must be at least 0.01"
                " (None: dropless)"
            )

    def _validate_groups(self, prefix: str) -> None:
        groups, kept = self.num_groups, self.groups_kept
        if groups < 1 or self.num_experts % groups:
            raise UserError(
                f"{prefix}num_groups={groups} must divide {prefix}num_experts={self.num_experts}"
            )
        if not 1 <= kept <= groups:
            raise UserError(
                f"{prefix}groups_kept={kept} must be in 1..{groups} ({prefix}num_groups)"
            )
        if self.k > kept * (self.num_experts // groups):
            raise UserError(
                f"{prefix}k={self.k} is more than the {kept * (self.num_experts // groups)} experts"
                f" of {prefix}groups_kept={kept} groups"
            )
        if groups > 1 and self.group_score == "top2_sum" and self.num_experts // groups < 2:
            raise UserError(
                f"{prefix}group_score=top2_sum needs groups of 2 experts or more:"
                f" {prefix}num_groups={groups} of {prefix}num_experts={self.num_experts}"
            )
