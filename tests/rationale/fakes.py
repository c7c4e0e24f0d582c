"""A made-up assessment that looks like a real one: twelve subjects, pieces of words, baselines."""

import numpy as np

from moe_jax.rationale import Assessment, LabelScores, MethodScores, TextRationale

SUBJECTS = {
    "cheese": ["cheddar ripens in cool caves for a year", "the curd is cut, salted and pressed"],
    "volcanoes": ["lava ran down the southern flank", "ash from the crater closed the airport"],
    "dog breeds": ["the terrier was bred to hunt rats", "its coat is short, dense and water-proof"],
    "minerals": ["quartz crystals grow in hollow rock", "a hardness of seven on the Mohs scale"],
    "airlines": ["the carrier flies to forty cities", "its first route linked Oslo and Bergen"],
    "galaxies": [
        "a barred spiral in the Virgo cluster",
        "its redshift puts it far beyond the group",
    ],
    "football clubs": ["the club was relegated in May", "a record crowd watched the cup final"],
    "instruments": ["the oboe has a double reed", "its strings are plucked with a quill"],
    "antidepressants": ["the drug inhibits serotonin reuptake", "nausea is a common side effect"],
    "cognitive bias": ["people overrate what they own", "judgements lean towards the first number"],
    "programming": ["functions are values in the language", "the compiler infers static types"],
    "popes": ["he was elected after a long conclave", "the council met at his palace in Rome"],
}


def pieces(text: str, size: int = 5) -> np.ndarray:
    """[s, 2] offsets: words cut into pieces, punctuation apart."""
    found, start = [], 0
    for word in text.split(" "):
        found += [
            (start + i, min(start + i + size, start + len(word))) for i in range(0, len(word), size)
        ]
        start += len(word) + 1
    return np.array(found, np.int64).reshape(-1, 2)


def text_rationale(text, spans=(), *, num_factors=12, rng=None, error=0.2, factor_of=None):
    """A text whose factors follow the spans (start, end, label), with errors."""
    rng = rng or np.random.default_rng(0)
    offsets = pieces(text)
    labels = np.full(len(offsets), -1, np.int64)
    for start, end, label in spans:
        labels[(offsets[:, 0] >= start) & (offsets[:, 0] < end)] = label
    logits = rng.normal(size=(len(offsets), num_factors))
    for i, label in enumerate(labels):
        factor = int(factor_of[label]) if factor_of is not None else int(label)
        if label >= 0 and 0 <= factor < num_factors and rng.random() > error:
            logits[i, factor] += rng.uniform(3, 9)
    probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return TextRationale(text, offsets, probs.astype(np.float32), labels if len(spans) else None)


def samples(num, *, num_factors, num_labels, factor_of, rng, gold=True):
    """Texts of three fragments each."""
    names = list(SUBJECTS)
    found = []
    for _ in range(num):
        text, spans = "", []
        for label in rng.permutation(num_labels)[:3]:
            fragment = SUBJECTS[names[label % len(names)]][int(rng.integers(2))]
            text += " " if text else ""
            spans.append((len(text), len(text) + len(fragment), int(label)))
            text += fragment
        made = text_rationale(text, spans, num_factors=num_factors, rng=rng, factor_of=factor_of)
        found.append(made if gold else made._replace(labels=None))
    return found


def label_scores(level, num_labels, rng):
    """Scores around a level."""
    precision = np.clip(rng.normal(level, 0.1, num_labels), 0, 1)
    recall = np.clip(rng.normal(level, 0.1, num_labels), 0, 1)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-9)
    means = [float(x.mean()) for x in (precision, recall, f1)]
    return LabelScores(precision, recall, f1, rng.integers(300, 2500, num_labels), *means)


def assessment(*, num_factors=12, num_labels=12, gold=True, num_samples=12, seed=0) -> Assessment:
    """A whole assessment; without `gold` what an unlabelled corpus gives."""
    rng = np.random.default_rng(seed)
    mapping = np.full(num_factors, -1, np.int64)
    shared = min(num_factors, num_labels)
    mapping[rng.permutation(num_factors)[:shared]] = rng.permutation(num_labels)[:shared]
    factor_of = np.full(num_labels, -1)
    for factor, label in enumerate(mapping):
        if label >= 0:
            factor_of[label] = factor
    usage = rng.dirichlet(np.full(num_factors, 8.0))
    levels = {"model": 0.76, "majority": 0.02, "random": 0.08, "k-means": 0.59, "NMF": 0.37}
    names = list(SUBJECTS)
    words = [
        sorted({w.strip(",.") for f in SUBJECTS[names[int(m) % 12]] for w in f.split()}, key=len)[
            ::-1
        ]
        for m in mapping
    ]
    eraser = {
        f"{name}_{form}": float(rng.uniform(0.5, 0.8))
        for form in ("compat", "corrected")
        for name in ("token_precision", "token_recall", "token_f1", "token_micro_f1",
                     "iou_precision", "iou_recall", "iou_f1", "iou_micro_f1", "auprc")
    }  # fmt: skip
    faith = {
        f"{base}{part}_{form}": float(rng.uniform(-0.1, 0.4))
        for base in ("comprehensiveness", "sufficiency")
        for part in ("", "_aopc")
        for form in ("compat", "random", "corrected")
    }
    monitors = {
        "usage_perplexity": float(num_factors) * 0.93, "dead_factors": 0.0,
        "max_share": float(usage.max()), "token_entropy": 0.61, "relative_entropy": 0.245,
    }  # fmt: skip
    if gold:
        monitors |= {"macro_f1_low": 0.741, "macro_f1_high": 0.779, "homogeneity": 0.66,
                     "completeness": 0.67, "v_measure": 0.665}  # fmt: skip
    return Assessment(
        labels=[names[i % 12] + (f" {i // 12 + 1}" if i >= 12 else "") for i in range(num_labels)] if gold else [],
        methods=[
            MethodScores(n, label_scores(v, num_labels, rng), label_scores(min(1, v + 0.05), num_labels, rng), v * 0.9)
            for n, v in levels.items()
        ] if gold else [],
        mapping=mapping if gold else np.full(num_factors, -1, np.int64),
        usage=usage,
        monitors=monitors,
        rationale_scores=eraser if gold else {},
        faithfulness=faith,
        top_words=[[(w, 3.0 - 0.2 * i) for i, w in enumerate(part[:8])] for part in words],
        samples=samples(num_samples, num_factors=num_factors, num_labels=num_labels,
                        factor_of=factor_of, rng=rng, gold=gold),
    )  # fmt: skip


def history(steps=600, every=5, seed=0) -> list[dict]:
    """Lines of a metrics.jsonl."""
    rng = np.random.default_rng(seed)
    lines = []
    for step in range(every, steps + 1, every):
        fall = np.exp(-step / 150)
        noise = 1 + 0.03 * rng.normal(size=6)
        lines.append({
            "step": step, "loss": float((0.3 + fall) * noise[0]), "balance": float(0.02 * fall * noise[1]),
            "diversity": float((2 + 3 * fall) * noise[2]), "entropy": float((0.6 + 1.8 * fall) * noise[3]),
            "overlap": float((0.1 + 0.3 * fall) * noise[4]), "sentence": float((0.2 + 0.8 * fall) * noise[5]),
            "grad_norm": float(0.001 + fall**3), "skipped": 0,
        })  # fmt: skip
        if step % 100 == 0:
            f1 = 0.76 - 0.5 * fall
            lines.append({"step": step, "eval/model/macro_f1": f1, "eval/model/ami": f1 * 0.9,
                          "eval/monitors/usage_perplexity": 11.2, "eval/monitors/dead_factors": 0.0,
                          "eval/NMF/macro_f1": 0.37})  # fmt: skip
    return lines
