"""How a training went: loss and accuracy over the epochs."""

import polars as pl
from matplotlib.figure import Figure

from netkin.report.style import panels, style

LOSSES = {
    "train_loss": "in all",
    "label_loss": "from the label",
    "teacher_loss": "from the teacher",
}
ACCURACIES = {
    "train_accuracy": "training, class head",
    "distilled_accuracy": "training, distillation head",
    "teacher_agreement": "training, agreement with the teacher",
    "test_accuracy": "test",
    "test_accuracy_ema": "test, moving average",
}


@style()
def curves_figure(curves: pl.DataFrame) -> Figure:
    """Two panels from the curves of `netkin.training.fit.Fit`: losses, and accuracies in per cent.

    Accuracies that were not looked at in every epoch are drawn as points joined by a line.
    """
    figure, (left, right) = panels(2, 3.6, 2.9)
    for column, label in LOSSES.items():
        if column in curves.columns:
            left.plot(curves["epoch"], curves[column], label=label)
    left.set(xlabel="epoch", ylabel="loss on augmented images (nats)")
    if "teacher_loss" in curves.columns:
        left.legend()
    for column, label in ACCURACIES.items():
        if column in curves.columns:
            seen = curves.drop_nulls(column)
            marker = "o" if column.startswith("test") else ""
            right.plot(seen["epoch"], 100 * seen[column], label=label, marker=marker)
    right.set(xlabel="epoch", ylabel="accuracy (%)")
    right.legend(loc="lower right")
    return figure
