"""The default corpus: its shape, its honesty (split, spans, labels), and that it is repeatable."""

import collections
import importlib.util
import json
import os
import random
import subprocess
import sys

import pytest

from moe_jax.data import CorpusConfig, documents, installed, load_corpus, write_jsonl
from moe_jax.errors import UserError


def pieces(examples):
    """(label index, fragment) of every span."""
    return [(k, example.text[a:b]) for example in examples for a, b, k in example.spans]


class TestItems:
    def test_every_label_has_enough_to_learn_from(self, items):
        assert list(items) == list(documents.SOURCES)
        for by_item in items.values():
            assert len(by_item) >= 40
            assert sum(map(len, by_item.values())) >= 130

    def test_sentences_are_unique_and_long_enough(self, items):
        every = [s for by_item in items.values() for found in by_item.values() for s in found]
        assert len(set(every)) == len(every)
        assert min(len(s.split(" ")) for s in every) == documents.MIN_WORDS

    def test_telling_words_are_found_under_their_label(self, items):
        def count(label, word):
            return sum(word in s.lower() for found in items[label].values() for s in found)

        for label, word in [("email", "header"), ("linear algebra", "matri"), ("images", "image")]:
            assert max(items, key=lambda name: count(name, word)) == label

    def test_what_is_left_out(self, monkeypatch):
        common = "This sentence is found under both of the labels here."
        plain = "Nothing in here says which of the labels it has."
        cats = [f"The cat purrs at {who} when it is in the house." for who in ("Ann", "Ben", "Cyd")]
        dogs = [f"The dog barks at {who} when it is in the house." for who in ("Ann", "Ben", "Cyd")]
        texts = {
            "m": [
                ("m.one", " ".join([common, plain, *cats])),
                ("m.two", cats[0].replace("A", "a")),
            ],
            "n": [("n.one", " ".join([*dogs, common]))],
        }
        monkeypatch.setattr(documents, "SOURCES", {"cat": ("m",), "dog": ("n",)})
        monkeypatch.setattr(documents, "documents", texts.__getitem__)
        # cat and purrs, dog and barks are typical; the second item only repeats the first.
        assert documents.collect() == {"cat": {"m.one": cats}, "dog": {"n.one": dogs}}


class TestTypicalWords:
    def test_by_hand(self):
        items = {
            "a": {"x": ["the cat sat", "the cat ran", "a cat", "the dog"]},
            "b": {"y": ["the dog sat", "the dog ran", "a dog", "the cow"]},
        }
        # cat: 3/4 in a, 0 in b. dog: 1/4 in a, 3/4 in b. the: 3/4 in both. others: too few.
        assert documents._typical_words(items) == {"a": {"cat"}, "b": {"dog"}}


class TestSplit:
    def test_no_item_is_on_both_sides(self, items):
        train, test = documents.split(items, 0)
        for label, by_item in items.items():
            assert not train[label].keys() & test[label].keys()
            assert {**by_item, **train[label]} == by_item
            assert len(by_item) - len(train[label]) == round(0.25 * len(by_item))
            for item, found in test[label].items():
                assert set(found) <= set(by_item[item])
                assert found

    def test_test_sentences_that_repeat_training_text_are_left_out(self):
        items = {
            "a": {
                str(i): [f"number {i} is all that differs between these eight words"]
                for i in range(8)
            }
        }
        train, test = documents.split(items, 0)
        assert len(train["a"]) == 6
        assert test == {"a": {}}
        items["a"]["x"] = ["something else that has no eight words in common"]
        for seed in range(10):
            _, test = documents.split(items, seed)
            assert test["a"].keys() <= {"x"}

    def test_most_test_sentences_remain(self, items):
        for by_item in documents.split(items, 0)[1].values():
            assert sum(map(len, by_item.values())) >= 20

    def test_the_seed_decides(self, items):
        assert documents.split(items, 0) == documents.split(items, 0)
        assert documents.split(items, 0) != documents.split(items, 1)


class TestExamples:
    def test_sizes_and_labels(self, corpus):
        assert [len(corpus.train), len(corpus.test)] == [1200, 300]
        assert corpus.labels == list(documents.SOURCES)
        assert 8 <= len(corpus.labels) <= 12

    def test_three_fragments_of_different_labels_joined_by_spaces(self, corpus):
        for example in corpus.train + corpus.test:
            assert len({k for *_, k in example.spans}) == 3
            assert " ".join(example.text[a:b] for a, b, _ in example.spans) == example.text
            assert all(8 <= len(example.text[a:b].split(" ")) <= 20 for a, b, _ in example.spans)

    def test_fragments_come_from_items_of_their_label_and_part(self, items, corpus):
        for part, examples in zip(
            documents.split(items, 0), (corpus.train, corpus.test), strict=True
        ):
            source = [
                "\n".join(s for found in by_item.values() for s in found)
                for by_item in part.values()
            ]
            assert all(fragment in source[k] for k, fragment in pieces(examples))

    def test_no_eight_words_of_a_fragment_are_in_both_parts(self, corpus):
        def runs(examples):
            for _, fragment in pieces(examples):
                words = fragment.lower().split(" ")
                yield from (" ".join(words[i : i + 8]) for i in range(len(words) - 7))

        assert not set(runs(corpus.train)) & set(runs(corpus.test))

    def test_labels_are_balanced(self, corpus):
        # 3600 draws of 12 labels: 300 each, standard deviation about 15.
        count = collections.Counter(k for k, _ in pieces(corpus.train))
        assert 240 < min(count.values()) <= max(count.values()) < 360

    def test_same_seed_same_corpus_other_seed_other_corpus(self, quick_build, corpus):
        assert quick_build(num_train=1200, num_test=300, seed=0) == corpus
        other = quick_build(num_train=1200, num_test=300, seed=1)
        assert not {e.text for e in other.train} & {e.text for e in corpus.train}

    def test_a_smaller_corpus_is_the_beginning_of_a_larger(self, quick_build, corpus):
        small = quick_build(num_train=7, num_test=0, seed=0)
        assert small.train == corpus.train[:7]
        assert small.test == []

    def test_load_corpus_uses_the_config(self, quick_build, corpus):
        loaded = load_corpus(CorpusConfig(num_train=20, num_test=5))
        assert loaded.train == corpus.train[:20]
        assert loaded.test == corpus.test[:5]
        assert load_corpus(CorpusConfig()) == corpus

    def test_export_and_read_back(self, corpus, tmp_path):
        write_jsonl(corpus, tmp_path / "docs")
        assert load_corpus(CorpusConfig(path=str(tmp_path / "docs"))) == corpus

    def test_another_process_with_another_hash_seed_makes_the_same(self, monkeypatch):
        labels = ["python language", "concurrency", "email", "files"]  # the quick ones
        code = (
            "import json; from moe_jax.data import documents as d;"
            f"d.SOURCES = {{k: d.SOURCES[k] for k in {labels}}};"
            "print(json.dumps(d.build(num_train=100, num_test=50, seed=3)))"
        )
        env = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(sys.path)}
        result = subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
        )
        sources = {label: documents.SOURCES[label] for label in labels}
        monkeypatch.setattr(documents, "SOURCES", sources)
        here = documents.build(num_train=100, num_test=50, seed=3)
        assert json.loads(result.stdout) == json.loads(json.dumps(here))


class TestFragment:
    def test_a_short_sentence_is_whole(self):
        sentence = " ".join(["word"] * 20)
        assert documents.fragment(sentence, random.Random(0)) == sentence

    def test_a_long_sentence_gives_a_clause(self):
        clauses = [" ".join([name] * 12) for name in ("one", "two", "three")]
        sentence = f"{clauses[0]}, {clauses[1]}, {clauses[2]}."
        made = {documents.fragment(sentence, random.Random(i)) for i in range(50)}
        assert made == {f"{clauses[0]},", f"{clauses[1]},", f"{clauses[2]}."}

    def test_a_clause_that_opens_what_it_does_not_close_is_not_taken(self):
        sentence = " ".join(["one"] * 9 + ["(two,"] + ["three"] * 12 + ["four)."])
        made = {documents.fragment(sentence, random.Random(i)) for i in range(50)}
        assert all(text.startswith("one one") or text.endswith("four).") for text in made)

    def test_without_clauses_the_beginning_or_the_end(self):
        words = [f"w{i}" for i in range(30)]
        for i in range(50):
            made = documents.fragment(" ".join(words), random.Random(i)).split(" ")
            assert 8 <= len(made) <= 20
            assert made in (words[: len(made)], words[-len(made) :])


class TestInstalled:
    def test_public_docstrings_with_their_names(self, tmp_path, monkeypatch):
        package = tmp_path / "somepkg"
        (package / "sub" / "tests").mkdir(parents=True)
        (package / "__init__.py").write_text('"""Top."""\nraise RuntimeError("executed")\n')
        (package / "sub" / "b.py").write_text(
            'class A:\n  """Class."""\n  def f(self):\n    """Method."""\n  def _g(self):\n    """No."""\n'
            'async def h():\n  """Function."""\nx = 1\n'
        )
        (package / "sub" / "b_test.py").write_text('"""No."""\n')
        (package / "sub" / "tests" / "c.py").write_text('"""No."""\n')
        monkeypatch.syspath_prepend(tmp_path)
        assert list(installed.documents("somepkg")) == [
            ("somepkg.__init__", "Top."),
            ("somepkg.sub.b.A", "Class."),
            ("somepkg.sub.b.A.f", "Method."),
            ("somepkg.sub.b.h", "Function."),
        ]
        assert next(installed.documents("somepkg.sub.b"))[0] == "somepkg.sub.b.A"
        assert "somepkg" not in sys.modules

    def test_a_module_of_the_standard_library(self):
        assert dict(installed.documents("queue"))["queue.Queue.put"].startswith("Put an item")

    def test_topics(self):
        names = [name for name, _ in installed.documents(installed.TOPICS)]
        assert names == sorted(names)
        assert "topic exceptions" in names

    def test_the_sources_are_never_imported(self):
        code = (
            "import sys; from moe_jax.data import installed;"
            "list(installed.documents('sklearn.svm')); list(installed.documents('scipy.fft'));"
            "print([m for m in ('sklearn', 'scipy') if m in sys.modules])"
        )
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        result = subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
        )
        assert result.stdout.strip() == "[]"

    @pytest.mark.parametrize(
        "module, expected",
        [
            ("sklearn.cluster", "pip install scikit-learn (or 'moe-jax[rationale]')"),
            ("scipy.signal", "pip install scipy "),
            ("PIL", "pip install pillow "),
        ],
    )
    def test_a_missing_package(self, monkeypatch, module, expected):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(UserError, match="is not installed") as caught:
            list(installed.documents(module))
        assert expected in str(caught.value)
        assert f"the documentation of {module}," in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_a_missing_submodule(self):
        with pytest.raises(UserError, match=r"documentation of numpy\.no_such_part"):
            list(installed.documents("numpy.no_such_part"))

    def test_a_python_without_its_sources(self, monkeypatch, tmp_path):
        monkeypatch.setattr(installed.sysconfig, "get_path", lambda name: str(tmp_path))
        with pytest.raises(UserError, match=r"email, which this Python installation lacks"):
            list(installed.documents("email"))

    def test_a_python_without_topics(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
        with pytest.raises(UserError, match=r"pydoc_data\.topics, which this Python"):
            list(installed.documents(installed.TOPICS))

    def test_a_damaged_source(self, tmp_path, monkeypatch):
        (tmp_path / "brokenmod.py").write_text("def (:\n")
        monkeypatch.syspath_prepend(tmp_path)
        with pytest.raises(UserError, match=r"brokenmod\.py: cannot be read as Python source"):
            list(installed.documents("brokenmod"))

    def test_too_little_documentation(self, monkeypatch):
        few = {label: {"item": ["One sentence."]} for label in documents.SOURCES}
        monkeypatch.setattr(documents, "collect", lambda: few)
        with pytest.raises(UserError, match="too little documentation of 'python language'"):
            documents.build(num_train=1, num_test=1, seed=0)
