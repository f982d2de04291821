"""The curve of a training as a picture.

Owns what is plotted. Knows nothing of how the figures came about.
"""

from pathlib import Path

from matplotlib.figure import Figure

from spyglass_training.learning.run import read_log

_SHOWN = {
    "encoder": ("kind", "colour", "side", "count", "digits", "character", "word"),
    "answers": (
        "colour",
        "shape",
        "count",
        "digit",
        "pick colour",
        "pick shape",
        "relation",
        "number",
        "word",
        "describe",
    ),
}


def draw_curve(folder: Path, file: Path) -> None:
    """Writes a PNG with the loss and the shares of right answers of each phase over its minutes."""
    figure = Figure(figsize=(12, 8), layout="constrained")
    for column, (phase, names) in enumerate(_SHOWN.items()):
        lines = list(read_log(folder, phase))
        loss, right = figure.add_subplot(2, 2, 1 + column), figure.add_subplot(2, 2, 3 + column)
        steps = [line for line in lines if "loss" in line]
        loss.plot([line["minutes"] for line in steps], [line["loss"] for line in steps], linewidth=0.8)
        loss.set(title=f"{phase}: loss", xlabel="minutes", yscale="log")
        exams = [line for line in lines if names[0] in line]
        for name in names:
            points = [(line["minutes"], 100 * line[name]) for line in exams if name in line]
            right.plot(*zip(*points, strict=True), label=name) if points else None
        right.set(title=f"{phase}: right answers on fresh pictures, %", xlabel="minutes", ylim=(0, 101))
        right.grid(alpha=0.3)
        if exams:
            right.legend(loc="lower right", fontsize="small")
    figure.savefig(file, dpi=110)
