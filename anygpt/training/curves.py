"""Learning curves as a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anygpt.media import atomic_write


def plot_curves(history: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw training loss and every `eval_*_loss` of a Trainer's log history against the step, as PNG.

    Those of a part of a file (`eval_<file>/<part>_loss`) stand in the logs only: there may be dozens.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    curves: dict[str, list[tuple[float, float]]] = {}
    for entry in history:
        for key, value in entry.items():
            if key == "loss" or (key.startswith("eval_") and key.endswith("_loss") and "/" not in key):
                curves.setdefault(key.removeprefix("eval_").removesuffix("_loss"), []).append((entry["step"], value))
    figure, axes = pyplot.subplots(figsize=(9, 5))
    for name, points in curves.items():
        is_training = name == "loss"
        label = "training" if is_training else name
        axes.plot(*zip(*points, strict=True), label=label, alpha=0.4 if is_training else 1, lw=1 if is_training else 2)
    axes.set(xlabel="step", ylabel="cross-entropy (nats per id)")
    axes.grid(alpha=0.3)
    if curves:
        axes.legend()
    figure.tight_layout()
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    pyplot.close(figure)
