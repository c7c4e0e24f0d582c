"""Which experts a prompt uses, and what happens when it is sent to others."""
