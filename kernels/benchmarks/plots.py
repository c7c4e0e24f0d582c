"""Two charts of layer.py's figures: a roofline, and speed-ups over each rival."""

from typing import Any

import matplotlib
import numpy as np
from loads import Shape

matplotlib.use("Agg")
from matplotlib import pyplot as plt

PUBLISHED_H100 = {
    # T, d, f, E, k: TFLOP/s forward and backward of SonicMoE, then of ScatterMoE, in bfloat16.
    # Read off the figure in SonicMoE's README, so each is right to about 3 TFLOP/s.
    (40960, 768, 256, 128, 8): ((337, 364), (180, 198)),
    (40960, 768, 512, 64, 4): ((399, 403), (198, 242)),
    (40960, 768, 1024, 32, 2): ((405, 435), (236, 270)),
    (24576, 1536, 256, 128, 8): ((364, 405), (206, 210)),
    (24576, 1536, 512, 64, 4): ((433, 439), (234, 247)),
    (24576, 1536, 1024, 32, 2): ((465, 467), (264, 281)),
    (32768, 4096, 256, 256, 16): ((428, 460), (261, 237)),
    (32768, 4096, 512, 128, 8): ((503, 511), (323, 303)),
    (32768, 4096, 1024, 64, 4): ((552, 554), (368, 340)),
    (32768, 4096, 512, 256, 16): ((517, 526), (336, 314)),
    (32768, 4096, 1024, 128, 8): ((558, 567), (381, 353)),
    (32768, 4096, 2048, 64, 4): ((595, 586), (385, 370)),
}
NAMES = ("SonicMoE (published, H100)", "ScatterMoE (published, H100)")


def published(device: str, row: dict[str, Any]) -> tuple[float, float] | None:
    """Published FLOP/s of SonicMoE and ScatterMoE for this row; None off their kind of device.

    Their backward pass is given alone; for forward+backward the times of both are added.
    """
    found = PUBLISHED_H100.get(tuple(row[name] for name in Shape._fields))
    if not any(kind in device for kind in ("H100", "H200")) or row["dtype"] != "bfloat16":
        return None
    if found is None:
        return None
    if row["what"] == "forward":
        return found[0][0] * 1e12, found[1][0] * 1e12
    sonic, scatter = (18e12 / (6 / forward + 12 / backward) for forward, backward in found)
    return sonic, scatter


def draw(found: dict[str, Any], path: str) -> None:
    """Writes both charts to one PNG file.

    Args:
      found: what layer.py writes as JSON: machine, ceilings and figures.
      path: the file.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(15, 6), layout="constrained")
    _roofline(left, found)
    _bars(right, found["figures"])
    about = found["machine"]
    figure.suptitle(f"moe_ffn on {about['device']}, jax {about['jax']}, {about['date'][:10]}")
    figure.savefig(path, format="png", dpi=130)
    plt.close(figure)


def _roofline(axis: Any, found: dict[str, Any]) -> None:
    ceilings, rows = found["ceilings"], found["figures"]
    unit, name = (1e12, "TFLOP/s") if ceilings["flops"] > 2e12 else (1e9, "GFLOP/s")
    intensity = [row["flops"] / row["least_bytes"] for row in rows]
    ridge = ceilings["flops"] / ceilings["bandwidth"]
    reach = np.geomspace(min([*intensity, ridge]) / 2, 2 * max([*intensity, ridge]), 200)
    roof = np.minimum(ceilings["flops"], reach * ceilings["bandwidth"])
    label = (
        f"measured: {ceilings['flops'] / unit:.0f} {name}, {ceilings['bandwidth'] / 1e9:.0f} GB/s"
    )
    axis.loglog(reach, roof / unit, color="black", label=label)
    for what, marker in (("forward", "o"), ("forward+backward", "s")):
        own = [(i, row) for i, row in zip(intensity, rows, strict=True) if row["what"] == what]
        points = [row["flops_per_s"] / unit for _, row in own]
        axis.loglog([i for i, _ in own], points, marker, label=f"moe_ffn, {what}")
    marks = [
        (i, published(found["machine"]["device"], r)) for i, r in zip(intensity, rows, strict=True)
    ]
    marks = [(i, both) for i, both in marks if both is not None]
    for place, (name_of, marker) in enumerate(zip(NAMES, "x+", strict=True)):
        if marks:
            heights = [both[place] / unit for _, both in marks]
            axis.loglog([i for i, _ in marks], heights, marker, color="gray", label=name_of)
    axis.set_xlabel("FLOPs per byte that has to move")
    axis.set_ylabel(name)
    axis.set_title("Roofline")
    axis.legend(fontsize=8)


def _bars(axis: Any, rows: list[dict[str, Any]]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row["peers"]))
    places = np.arange(len(rows))
    width = 0.8 / len(names)
    for i, name in enumerate(names):
        peers = [row["peers"].get(name) for row in rows]
        # From 1, up or down: a bar has no other base on a logarithmic axis.
        height = [np.nan if peer is None else 1 / peer["ratio"] - 1 for peer in peers]
        axis.bar(places + (i - (len(names) - 1) / 2) * width, height, width, 1.0, label=name)
    axis.axhline(1.0, color="black", linewidth=1)
    shapes = [Shape(*(row[name] for name in Shape._fields)).text for row in rows]
    short = {"forward": "fwd", "forward+backward": "fwd+bwd"}
    labels = [f"{shape} {short[row['what']]}" for shape, row in zip(shapes, rows, strict=True)]
    axis.set_xticks(places, labels, rotation=40, ha="right", fontsize=7)
    axis.set_yscale("log")
    axis.set_ylabel("its time / moe_ffn's")
    axis.set_title("Speed-up of moe_ffn (above 1: faster)")
    axis.legend(fontsize=8)
