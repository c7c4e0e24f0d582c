"""GateConfig: what a gate does, as independent fields (no model names)."""

import dataclasses
from fractions import Fraction

from moe_jax.common.checks import flag, joined, number, one_of, setting, whole, wrong

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

    def validate(self, path: str = "") -> None:
        """Check the fields, alone and together.

        Args:
            path: the dotted path of this config, such as "model.gate", for the message.

        Raises:
            UserError: a field is wrong; one line that names it, with its value and what is right.
        """
        self._validate_choices(path)
        self._validate_numbers(path)
        self._validate_capacity(path)
        self._validate_groups(path)
        if self.score == "sparsemixer" and self.topk_first:
            with_score = setting(path, "score", self.score)
            raise wrong(path, "topk_first", True, f"be False: it has no meaning with {with_score}")
        if self.choice == "expert":
            with_choice = setting(path, "choice", self.choice)
            for name, plain in (("topk_first", False), ("num_groups", 1), ("priority", "position")):
                if (value := getattr(self, name)) != plain:
                    must = f"be {plain!r}: another has no meaning with {with_choice}"
                    raise wrong(path, name, value, must)
            if self.score == "sparsemixer":
                must = f"be another: it needs {joined(path, 'choice')}='token'"
                raise wrong(path, "score", self.score, must)

    def _validate_choices(self, path: str) -> None:
        one_of(path, "score", self.score, SCORES)
        one_of(path, "group_score", self.group_score, GROUP_SCORES)
        one_of(path, "choice", self.choice, CHOICES)
        one_of(path, "priority", self.priority, PRIORITIES)
        for name in ("topk_first", "renormalise", "learned_noise"):
            flag(path, name, getattr(self, name))

    def _validate_numbers(self, path: str) -> None:
        whole(path, "num_experts", self.num_experts, 1)
        whole(path, "k", self.k, 1)
        if self.k > self.num_experts:
            most = setting(path, "num_experts", self.num_experts)
            raise wrong(path, "k", self.k, f"be at most {most}")
        for name in ("temperature", "scale", "sparsemixer_jitter"):
            number(path, name, getattr(self, name), above=0)
        number(path, "jitter", self.jitter, low=0, below=1)
        for name in ("renormalise_eps", "noise_std"):
            number(path, name, getattr(self, name), low=0)

    def _validate_capacity(self, path: str) -> None:
        whole(path, "capacity", self.capacity, 1, none="dropless")
        number(path, "capacity_factor", self.capacity_factor, low=0.01, none="dropless")
        if self.capacity is not None and self.capacity_factor is not None:
            other = setting(path, "capacity_factor", self.capacity_factor)
            raise wrong(path, "capacity", self.capacity, f"be None beside {other}: use one of both")

    def _validate_groups(self, path: str) -> None:
        groups, kept = self.num_groups, self.groups_kept
        experts = setting(path, "num_experts", self.num_experts)
        whole(path, "num_groups", groups, 1)
        if self.num_experts % groups:
            raise wrong(path, "num_groups", groups, f"divide {experts}")
        whole(path, "groups_kept", kept, 1, groups, why=joined(path, "num_groups"))
        size = self.num_experts // groups
        if self.k > kept * size:
            within = f"the experts of {setting(path, 'groups_kept', kept)} groups"
            raise wrong(path, "k", self.k, f"be at most {kept * size}, {within}")
        if groups > 1 and self.group_score == "top2_sum" and size < 2:
            of = f"{setting(path, 'num_groups', groups)} of {experts}"
            must = f"have groups of 2 experts or more, not {of}"
            raise wrong(path, "group_score", self.group_score, must)
