"""loss.png: train and held-out loss over the steps of a run."""

from __future__ import annotations

from pathlib import Path

from dtrain.track import jsonl


def loss(metrics: Path, picture: Path) -> None:
    """Draw what metrics.jsonl holds into `picture`. Needs matplotlib, which comes with `dtrain[train]`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = jsonl.read(metrics)
    trained = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    held_out = [(line["step"], line["eval_loss"]) for line in lines if "eval_loss" in line]
    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    if trained:
        axes.plot(*zip(*trained, strict=True), label="train", color="#3b6ea5", linewidth=1.4)
    if held_out:
        axes.plot(
            *zip(*held_out, strict=True), label="held out", color="#c4572c", linewidth=1.8, marker="o", markersize=4
        )
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per trained token)")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if trained or held_out:
        axes.legend(frameon=False)
    figure.savefig(picture)
