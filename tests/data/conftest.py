import pytest

from moe_jax.data import documents


@pytest.fixture(scope="session")
def items():
    """The sentences of the default corpus; reading them takes some seconds."""
    return documents.collect()


@pytest.fixture(scope="session")
def corpus(items):
    """The default corpus."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "collect", lambda: items)
        return documents.build(num_train=1200, num_test=300, seed=0)


@pytest.fixture
def quick_build(items, monkeypatch):
    """`documents.build` without reading the sources again."""
    monkeypatch.setattr(documents, "collect", lambda: items)
    return documents.build
