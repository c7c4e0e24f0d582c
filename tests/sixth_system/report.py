"""What a person reads: one page."""

from moe_jax.common import write_atomically
from moe_jax.reports import Column, Section, render_page, table


def write(x, model, workdir):
    """report.html: which expert has which piece of the curve."""
    expert = model(x)[1].expert[:, 0]
    rows = [(f"{x[i, 0]:.2f}", int(expert[i])) for i in range(0, len(x), 10)]
    body = table([Column("x"), Column("expert")], rows)
    page = render_page("A curve in pieces", [Section("pieces", "Who has which piece", body)])
    write_atomically(workdir / "report.html", page)
