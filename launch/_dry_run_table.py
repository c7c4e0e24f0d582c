"""What `launch/train.py --dry_run` prints."""

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from moe_jax.errors import UserError

if TYPE_CHECKING:
    from moe_jax.training import Collective, DryRun, Task, TrainConfig

Row = tuple[str, ...]

SPLITS = {
    "data": "the batch",
    "fsdp": "the batch, large parameters",
    "expert": "the batch, experts",
}


def show_dry_run(task: "Task", config: "TrainConfig", devices: bool | int) -> None:
    """Print what a run would be on the devices here (True), or on so many.

    Raises:
      UserError: no such number of devices, or they can't be laid out as the config says.
    """
    from moe_jax.training import dry_run

    if devices is not True and devices < 1:
        raise UserError(f"--dry_run={devices}: must be at least 1 device")
    plan = dry_run(task, config, None if devices is True else devices)
    console = Console()
    print_dry_run(plan, console if console.is_terminal else Console(width=120))


def print_dry_run(found: "DryRun", console: Console) -> None:
    """The mesh, the parameters, the memory and the collectives as tables."""
    devices = math.prod(found.sizes.values())
    where = "here" if found.real else "imagined"
    console.print(f"Dry run on {devices:,} device{'s' * (devices > 1)} ({where}); no step was made")
    console.print(_table("Mesh", ("axis", "devices>", "splits"), _mesh(found)))
    heads = ("parameter", "shape", "dtype", "split over", "bytes a device>")
    console.print(_table("Parameters", heads, _parameters(found)))
    rows = _memory(found)
    totals = len(rows) - len(found.memory)
    console.print(_table("Memory", ("for", "bytes a device>"), rows, totals))
    if not found.collectives:
        console.print("Collectives: none, nothing is sent")
        return
    columns = ("for", "collective", "over", "a step>", "bytes put in>", "bytes sent>")
    rows = _collectives(found.collectives)
    console.print(_table("Collectives, for each device", columns, rows, 1))


def size_text(count: float) -> str:
    """Bytes for a person: 1.50 GB (powers of 1000)."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def _table(title: str, columns: Iterable[str], rows: Sequence[Row], totals: int = 0) -> Table:
    """A table whose last `totals` rows stand apart; columns that end in ">" are right-aligned."""
    table = Table(title=title, title_justify="left")
    for column in columns:
        name, right = column.removesuffix(">"), column.endswith(">")
        table.add_column(name, justify="right" if right else "left", overflow="fold")
    for i, row in enumerate(rows):
        table.add_row(*row, end_section=i + totals + 1 == len(rows))
    return table


def _mesh(found: "DryRun") -> list[Row]:
    return [(name, f"{size:,}", SPLITS[name]) for name, size in found.sizes.items()]


def _parameters(found: "DryRun") -> list[Row]:
    rows: list[Row] = []
    for p in found.parameters:
        spec = " ".join(str(axis or "-") for axis in (*p.spec, *[None] * len(p.shape)))
        spec = " ".join(spec.split()[: len(p.shape)])
        over = spec if set(spec) - {"-", " "} else "copied"
        rows.append((p.name, " ".join(map(str, p.shape)), p.dtype, over, size_text(p.bytes)))
    return rows


def _memory(found: "DryRun") -> list[Row]:
    rows: list[Row] = [(name, size_text(n)) for name, n in found.memory.items()]
    rows.append(("sum, without activations", size_text(sum(found.memory.values()))))
    if found.temporary is not None:
        name = "temporaries of the compiled step (activations, gradients)"
        rows.append((name, size_text(found.temporary)))
    return rows


def _collectives(found: "list[Collective]") -> list[Row]:
    def same(c: "Collective") -> tuple[str, ...]:
        direction = " (backward)" if c.backward else ""
        loop = " further rounds" if c.in_loop else ""
        return (f"{c.scope or 'step'}{loop}{direction}", c.kind, " ".join(c.axes))

    groups: dict[tuple[str, ...], list[Collective]] = {}
    for c in found:
        groups.setdefault(same(c), []).append(c)
    rows: list[Row] = []
    for key, group in groups.items():
        times = sum(c.times for c in group)
        put = sum(c.operand * c.times for c in group)
        sent = sum(c.sent * c.times for c in group)
        often = "each round" if group[0].in_loop else f"{times:,}"
        rows.append((*key, often, size_text(put), size_text(sent)))
    fixed = [c for c in found if not c.in_loop]
    total = [sum(getattr(c, field) * c.times for c in fixed) for field in ("operand", "sent")]
    name = "sum, without further rounds" if len(fixed) < len(found) else "sum"
    often = f"{sum(c.times for c in fixed):,}"
    rows.append((name, "", "", often, *map(size_text, total)))
    return rows
