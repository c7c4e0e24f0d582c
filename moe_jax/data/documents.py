"""The default corpus: fragments of the documentation that Python and the packages carry.

The documentation is read from the installed source files without importing them, so the corpus
depends on the installed versions and the seed only. Everything comes from packages that the
`rationale` extra installs.

It is meant to show and try the system without any download. Sentences that nobody could place are
left out with the help of the labels, which makes it easier than text that is labelled as it
comes: don't compare scores on it with scores on other corpora.
"""

import collections
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from moe_jax.data.installed import TOPICS, documents
from moe_jax.data.prose import is_closed, sentences
from moe_jax.data.types import Corpus, Example
from moe_jax.errors import UserError

T = TypeVar("T")

# Where the sentences of each label come from: modules, with everything below them.
SOURCES: dict[str, tuple[str, ...]] = {
    "python language": (TOPICS,),
    "concurrency": ("asyncio", "concurrent", "multiprocessing", "queue", "selectors", "threading"),
    "email": ("email", "imaplib", "mailbox", "poplib", "smtplib"),
    "files": (
        *("_pyio", "bz2", "filecmp", "fileinput", "fnmatch", "genericpath", "glob", "gzip"),
        *("lzma", "os", "pathlib", "posixpath", "shutil", "tarfile", "tempfile", "zipfile"),
    ),
    "images": ("PIL", "scipy.ndimage"),
    "linear algebra": ("numpy.linalg", "scipy.linalg", "scipy.sparse"),
    "machine learning": (
        *("sklearn.cluster", "sklearn.decomposition", "sklearn.ensemble", "sklearn.linear_model"),
        *("sklearn.neighbors", "sklearn.svm", "sklearn.tree"),
    ),
    "neural networks": ("flax.linen", "flax.nnx", "optax"),
    "optimisation": ("scipy.optimize",),
    "plotting": (
        *("matplotlib.axes", "matplotlib.axis", "matplotlib.collections", "matplotlib.colorbar"),
        *("matplotlib.colors", "matplotlib.contour", "matplotlib.figure", "matplotlib.gridspec"),
        *("matplotlib.legend", "matplotlib.lines", "matplotlib.patches", "matplotlib.text"),
        "matplotlib.ticker",
    ),
    "signal processing": ("scipy.fft", "scipy.signal"),
    "statistics": ("scipy.stats", "statistics"),
}
FRAGMENTS = 3  # of different labels, in each example
MIN_WORDS, MAX_WORDS = 8, 20  # of a fragment
NUM_TYPICAL = 2  # words typical of its label that a sentence must hold
TEST_SHARE = 0.25  # of the items of each label

# sentences of each item (a docstring or a topic) of each label
Items = dict[str, dict[str, list[str]]]


def build(*, num_train: int, num_test: int, seed: int) -> Corpus:
    """Cut examples of three fragments with three labels out of the documentation.

    For each label a quarter of the items (docstrings or topics) is set aside for the test part.
    An example takes three different labels at random, for each an item of its part, a sentence of
    the item, and of a sentence of more than 20 words 8 to 20 words; the fragments are joined by
    spaces, and the spans say which label each was taken from.

    Raises:
      UserError: a package or source file is missing; the message says what to install.
    """
    train, test = split(collect(), seed)
    for label in SOURCES:
        if not (train[label] and test[label]):
            raise UserError(
                f"the default corpus found too little documentation of {label!r} in "
                f"{', '.join(SOURCES[label])}; install these, or give a path to texts"
            )
    return Corpus(
        _examples(train, num_train, random.Random(f"{seed} train")),
        _examples(test, num_test, random.Random(f"{seed} test")),
        list(SOURCES),
    )


def collect() -> Items:
    """Sentences by label and item that a reader can place.

    Left out: a sentence seen before, one found under two labels, and one with fewer than two words
    typical of its label ("Return True if it is an object of the right type.").
    """
    found: dict[str, dict[str, tuple[str, str]]] = {}  # letters of a sentence, label: (item, it)
    for label, modules in SOURCES.items():
        for item, document in (pair for module in modules for pair in documents(module)):
            for sentence in sentences(document, min_words=MIN_WORDS):
                letters = re.sub(r"[^a-z]", "", sentence.lower())
                found.setdefault(letters, {}).setdefault(label, (item, sentence))
    items: Items = {label: {} for label in SOURCES}
    for places in found.values():
        if len(places) == 1:
            ((label, (item, sentence)),) = places.items()
            items[label].setdefault(item, []).append(sentence)
    typical = _typical_words(items)
    return {
        label: {
            item: kept
            for item, all_ in by_item.items()
            if (
                kept := [
                    sentence
                    for sentence in all_
                    if len(_words(sentence) & typical[label]) >= NUM_TYPICAL
                ]
            )
        }
        for label, by_item in items.items()
    }


def split(items: Items, seed: int) -> tuple[Items, Items]:
    """Divide the items of each label between the (train, test) parts, a quarter to test.

    Documentation repeats itself: test sentences that share 8 words in a row with any training
    sentence are left out, so that no fragment, whole or in part, is in both.
    """
    rng = random.Random(f"{seed} split")
    train: Items = {}
    test: Items = {}
    for label, by_item in items.items():
        names = _shuffled(rng, sorted(by_item))
        number = round(TEST_SHARE * len(names))
        test[label] = {name: by_item[name] for name in names[:number]}
        train[label] = {name: by_item[name] for name in names[number:]}
    known = {
        run for found in _all_sentences(train) for sentence in found for run in _runs(sentence)
    }
    return train, {
        label: {
            item: kept
            for item, found in by_item.items()
            if (kept := [sentence for sentence in found if known.isdisjoint(_runs(sentence))])
        }
        for label, by_item in test.items()
    }


def _all_sentences(items: Items) -> Iterator[list[str]]:
    for by_item in items.values():
        yield from by_item.values()


def _runs(sentence: str) -> set[tuple[str, ...]]:
    """Every run of 8 neighbouring words, letters only."""
    words = [re.sub(r"[^a-z]", "", word) for word in sentence.lower().split(" ")]
    return {tuple(words[i : i + MIN_WORDS]) for i in range(len(words) - MIN_WORDS + 1)}


def _typical_words(items: Items) -> dict[str, set[str]]:
    """Words more frequent (per sentence) in a label than in all the others together."""
    share: dict[str, dict[str, float]] = {}
    total: dict[str, float] = collections.defaultdict(float)
    for label, by_item in items.items():
        every = [sentence for found in by_item.values() for sentence in found]
        count = collections.Counter(word for sentence in every for word in _words(sentence))
        # A word met once or twice says more about chance than about the label.
        share[label] = {word: n / len(every) for word, n in count.items() if n >= 3}
        for word, n in count.items():
            total[word] += n / len(every)
    return {
        label: {word for word, x in shares.items() if x > total[word] - x}
        for label, shares in share.items()
    }


def _words(sentence: str) -> set[str]:
    return set(re.findall(r"[a-z]{3,}", sentence.lower()))


def _examples(items: Items, number: int, rng: random.Random) -> list[Example]:
    labels = list(items)
    names = {label: list(by_item) for label, by_item in items.items()}
    examples = []
    for _ in range(number):
        text, spans = "", []
        for index in _shuffled(rng, range(len(labels)))[:FRAGMENTS]:
            label = labels[index]
            item = _pick(rng, names[label])
            piece = fragment(_pick(rng, items[label][item]), rng)
            text += " " * bool(text)
            spans.append((len(text), len(text) + len(piece), index))
            text += piece
        examples.append(Example(text, tuple(spans)))
    return examples


def fragment(sentence: str, rng: random.Random) -> str:
    """The sentence if it has at most 20 words, otherwise 8 to 20 neighbouring words of it.

    Clauses (from comma to comma) are preferred; without one, the beginning or the end is taken.
    """
    words = sentence.split(" ")
    if len(words) <= MAX_WORDS:
        return sentence
    breaks = [0, *(i + 1 for i, word in enumerate(words) if word[-1] in ",;:.")]
    clauses = [
        (start, end)
        for start in breaks
        for end in breaks
        if MIN_WORDS <= end - start <= MAX_WORDS and is_closed(" ".join(words[start:end]))
    ]
    if clauses:
        start, end = _pick(rng, clauses)
    else:
        number = MIN_WORDS + _below(rng, MAX_WORDS - MIN_WORDS + 1)
        start = _pick(rng, (0, len(words) - number))
        end = start + number
    return " ".join(words[start:end])


# Only random.Random.random() promises the same numbers in every Python version.
def _below(rng: random.Random, number: int) -> int:
    return int(rng.random() * number)


def _pick(rng: random.Random, things: Sequence[T]) -> T:
    return things[_below(rng, len(things))]


def _shuffled(rng: random.Random, things: Iterable[T]) -> list[T]:
    order = list(things)
    for i in range(len(order) - 1, 0, -1):
        j = _below(rng, i + 1)
        order[i], order[j] = order[j], order[i]
    return order
