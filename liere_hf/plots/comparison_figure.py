"""A comparison of models as a figure."""

from matplotlib.axes import Axes

from ..comparison_files import Comparison
from ..configuration.metric_names import ENDS, MEASURES
from .plot import Plot, captioned, new_figure

COLOR, FIRST_COLOR = "#0072B2", "#000000"
# Of labels: longer names of models are cut at the front.
MAX_NAME = 40
TEXT = (
    "Left: each model with its own 95% interval. Right: the difference to the first model on the same examples. Its "
    "interval is mostly narrower, since both meet the same hard examples; where it leaves out 0, chance in the choice "
    "of examples hardly explains the difference."
)
TEST_TEXT = " p is of McNemar's exact test: how often two equally good models would differ as much."


def plot_comparison(comparison: Comparison) -> Plot:
    """The main measure of every model, and the differences to the first one.

    Returns:
        The figure, and the comparison.
    """
    measure = MEASURES[comparison.main_measure]
    scale, unit = (100, ", %") if measure.is_share else (1, "")
    names = [*comparison.metrics]
    figure = new_figure(10, 1.9 + 0.5 * len(names))
    left, right = figure.subplots(1, 2, sharey=True)
    for place, name in enumerate(names):
        metrics = comparison.metrics[name]
        keys = (comparison.main_measure, *(comparison.main_measure + end for end in ENDS))
        color = FIRST_COLOR if name == comparison.first else COLOR
        _point(left, place, [scale * metrics[key] for key in keys if key in metrics], color)
    p_values = []
    for difference in comparison.differences:
        if difference.measure == comparison.main_measure:
            place = names.index(difference.model)
            _point(right, place, [scale * each for each in (difference.value, difference.low, difference.high)], COLOR)
            if difference.p_value is not None:
                p_values.append(difference.p_value)
                text = f"p = {difference.p_value:.2g}" if difference.p_value >= 1e-4 else "p < 0.0001"
                right.annotate(
                    text, (scale * difference.value, place), (0, 8), textcoords="offset points", ha="center"
                )
    right.axvline(0, color=FIRST_COLOR, linewidth=1)
    left.set_yticks(range(len(names)), [f"{_short(name)}\n{comparison.encodings[name]}" for name in names])
    left.set(ylim=(len(names) - 0.5, -0.6), xlabel=f"{measure.title}{unit}", title="each model")
    right.set(xlabel=f"difference{unit}", title=f"minus {_short(comparison.first)}")
    for axes in (left, right):
        axes.grid(axis="x", alpha=0.3)
    return captioned(figure, comparison, TEXT + (TEST_TEXT if p_values else ""))


def _point(axes: Axes, place: int, values: list[float], color: str) -> None:
    """A value and, if there is one, its interval."""
    value, *ends = values
    axes.plot([value], [place], marker="o", color=color)
    if ends:
        axes.plot(ends, [place, place], color=color, linewidth=2)


def _short(name: str) -> str:
    return name if len(name) <= MAX_NAME else f"...{name[-MAX_NAME:]}"
