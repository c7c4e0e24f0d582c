"""What the report calls each figure, and how it explains it.

The keys are the names that `assess` gives; values are what people read.
"""

NO_GOLD = (
    "The test texts carry no gold labels, so there is nothing to compare the factors with. Give "
    'a corpus whose lines have "spans" to see precision, recall and F1 here.'
)
"""Stands where gold labels are needed."""

MONITORS = {
    "usage_perplexity": (
        "factors in use",
        "exp of the entropy of the mean assignment: 1 if one factor takes all, {e} if all are even",
    ),
    "dead_factors": ("dead factors", "with less than a hundredth of an even share of the tokens"),
    "max_share": ("largest share", "of the tokens that one factor took"),
    "token_entropy": ("entropy of a token", "mean over tokens, in nats: 0 means one factor each"),
    "relative_entropy": ("relative entropy", "the same over log {e}: 0 is certain, 1 is a guess"),
    "homogeneity": ("homogeneity", "1 if each factor holds tokens of one label only"),
    "completeness": ("completeness", "1 if all tokens of a label are in one factor"),
    "v_measure": ("V-measure", "harmonic mean of homogeneity and completeness"),
}
"""Collapse monitors: what each is called and what it means, with {e} factors."""

ERASER = {
    "token_precision": "Token precision",
    "token_recall": "Token recall",
    "token_f1": "Token F1",
    "token_micro_f1": "Token F1, pooled",
    "iou_precision": "Span precision (IoU ≥ 0.5)",
    "iou_recall": "Span recall (IoU ≥ 0.5)",
    "iou_f1": "Span F1 (IoU ≥ 0.5)",
    "iou_micro_f1": "Span F1, pooled (IoU ≥ 0.5)",
    "auprc": "AUPRC",
}
"""Agreement with gold rationales; each is there as _compat and as _corrected."""

FAITHFULNESS = {
    "comprehensiveness": "Comprehensiveness (higher is better)",
    "comprehensiveness_aopc": "Comprehensiveness, AOPC (higher is better)",
    "sufficiency": "Sufficiency (lower is better)",
    "sufficiency_aopc": "Sufficiency, AOPC (lower is better)",
}
"""Each is there as _compat (the factor's tokens), _random and _corrected (the difference)."""

MEANINGS = {
    "Factor of a token": "The factor with the highest probability.",
    "Precision, recall, F1": "Of each gold label, over all test tokens that carry a gold label. A "
    "factor stands for one label at most; which one was learned on training tokens (the matching "
    "with most tokens in common, Hungarian method). Macro figures are plain means over the labels.",
    "Many-to-one F1": "The same where several factors may stand for one label: each factor for the "
    "label that most of its training tokens carry.",
    "AMI": "Adjusted mutual information of factors and labels: 0 is chance, 1 is perfect. It needs "
    "no map from factors to labels.",
    "Baselines": "majority: every token in one group. random: the model's own factors, dealt out "
    "anew at random. k-means and NMF: on the same token states, with as many groups. All are "
    "mapped to labels and scored as the model is.",
    "95% interval": "Of macro F1, by drawing whole test texts with replacement (bootstrap).",
    "Share": "Part of the test tokens that a factor took.",
    "Typical words": "Words that a factor takes far more often than the others do (log-odds ratio "
    "with an informative prior, its lower 95% bound).",
    "ERASER, compatible": "As the benchmark's own program computes it, so that figures can be "
    "compared with published ones. Several predictions may claim one gold span, and the area under "
    "the curve is a trapezoid.",
    "ERASER, corrected": "Each gold span is found once at most, tokens without a gold label are "
    "left out, and AUPRC is average precision.",
    "Comprehensiveness": "How much the predicted sentence embedding loses, as cosine to the real "
    "one, when the tokens of a factor are taken away.",
    "Sufficiency": "How much it loses when only they are left. AOPC: mean over the 1, 5, 10, 20 "
    "and 50% of the tokens that are most of the factor. Corrected: minus the same for as many "
    "random tokens.",
}
"""The short definitions at the end of the page."""
