"""The help of flags from the docstrings of dataclasses."""

import dataclasses

from moe_jax.common import schema


@dataclasses.dataclass
class Documented:
    """A base.

    Attributes:
      first: one thing; see `other`: that too.
      second, third: on
        two lines.

    Raises:
      fourth: not a field.
    """

    first: int = 0
    second: int = 0
    third: int = 0
    fourth: int = 0


@dataclasses.dataclass
class Extended(Documented):
    """Says it otherwise.

    Attributes:
      second: of its own.
      gone: no field.
    """

    fifth: int = 0


def test_the_help_of_fields_is_what_the_docstrings_say():
    assert schema.field_help(Extended) == {
        "first": "one thing; see `other`: that too",
        "second": "of its own",
        "third": "on two lines",
    }
    assert schema.field_help(dataclasses.make_dataclass("Bare", ["x"])) == {}
