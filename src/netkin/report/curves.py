"""Loss and accuracy of a training over the epochs."""

import polars as pl
from matplotlib.figure import Figure

from netkin.report.style import panels, style

LOSSES = {
    "train_loss": "total",
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

    Test accuracies, which need not be there for every epoch, are points joined by a line.
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
            rows = curves.drop_nulls(column)
            marker = "o" if column.startswith("test") else ""
            right.plot(rows["epoch"], 100 * rows[column], label=label, marker=marker)
    right.set(xlabel="epoch", ylabel="accuracy (%)")
    right.legend(loc="lower right")
    return figure
