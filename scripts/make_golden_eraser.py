"""Golden values of ERASER's own program for tests/rationale/test_eraser.py.

    git clone https://github.com/jayded/eraserbenchmark CHECKOUT    (commit 36467f1)
    python scripts/make_golden_eraser.py CHECKOUT tests/golden/eraser.json

Needs what the program imports (torch, scikit-learn, scipy); nothing of moe_jax is used. The file
holds the instances too, so that the test depends on no random generator.
"""

import json
import random
import sys

sys.path.insert(0, sys.argv[1])
from rationale_benchmark import metrics


def spans(rng, size, most, least):
    """Disjoint spans in 0..size."""
    cuts = sorted(rng.sample(range(size + 1), 2 * rng.randint(least, most)))
    return [(a, b) for a, b in zip(cuts[::2], cuts[1::2], strict=True)]


def instance(rng, index):
    """One text: sizes, spans and coarse scores (so that ties occur)."""
    size = rng.randint(8, 24)
    gold = [(0, size)] if index % 7 == 0 else spans(rng, size, 3, 1)
    predicted = spans(rng, size, 4, 0)
    if index % 5 == 0:  # two halves of a gold span: both count in the program
        a, b = gold[0]
        predicted = [(a, (a + b) // 2), ((a + b) // 2, b)] if b - a > 1 else predicted
    return {
        "size": size,
        "gold": gold,
        "predicted": predicted,
        "scores": [rng.randint(0, 8) / 8 for _ in range(size)],
    }


def main():
    """Run the program on 40 instances and store what it says."""
    rng = random.Random(0)
    instances = [instance(rng, i) for i in range(40)]
    truth, guess, scored = [], [], []
    for i, part in enumerate(instances):
        name = str(i)
        truth += [metrics.Rationale(name, name, a, b) for a, b in part["gold"]]
        guess += [metrics.Rationale(name, name, a, b) for a, b in part["predicted"]]
        where = [any(a <= t < b for a, b in part["gold"]) for t in range(part["size"])]
        scored.append(
            metrics.PositionScoredDocument(name, name, tuple(part["scores"]), tuple(where))
        )
    tokens = [[t for r in side for t in r.to_token_level()] for side in (truth, guess)]
    expected = {
        "iou": metrics.partial_match_score(truth, guess, [0.5])[0],
        "token": metrics.score_hard_rationale_predictions(*tokens),
        "soft": {k: float(v) for k, v in metrics.score_soft_tokens(scored).items()},
    }
    with open(sys.argv[2], "w", encoding="utf-8") as file:
        json.dump({"instances": instances, "expected": expected}, file)
        file.write("\n")


if __name__ == "__main__":
    main()
