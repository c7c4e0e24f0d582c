"""UserError is an ordinary exception that carries one line."""

from moe_jax.errors import UserError


def test_user_error_prints_its_message_only():
    assert str(UserError("k=9 is more than num_experts=8")) == "k=9 is more than num_experts=8"
