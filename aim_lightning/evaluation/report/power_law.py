"""Fit power laws to the variations of a suite, such as the loss against the number of parameters."""

import math
from dataclasses import dataclass

import numpy as np

from aim_lightning.evaluation.report.comparison import Row
from aim_lightning.utils.errors import UserError


@dataclass(frozen=True)
class PowerLaw:
    """The line ln y = intercept + exponent * ln x through (x, y) of each variation, by least squares."""

    x: str
    y: str
    points: dict[str, tuple[float, float]]
    exponent: float
    intercept: float

    def __str__(self) -> str:
        law = f"{self.y} = {math.exp(self.intercept):.4g} * {self.x}^{self.exponent:.4f}"
        return f"{law}: exponent {self.exponent:.4f}, intercept {self.intercept:.4f} (natural logarithm)"


def fit(x: str, y: str, rows: list[Row]) -> PowerLaw:
    """Fit a power law to the means of the columns `x` and `y`, with one row per variation.

    Raises:
        UserError: a column does not exist or is not positive and finite, or all x are equal.
    """
    points = {}
    for row in rows:
        values = {column.metric: value.mean for column, value in row.values.items()}
        if bad := next((name for name in (x, y) if not 0 < values.get(name, 0) < math.inf), None):
            raise UserError(f"power_law: {row.name} has no positive, finite {bad}; use columns of {', '.join(values)}")
        points[row.name] = values[x], values[y]
    log_x, log_y = np.log(list(points.values())).T
    if np.ptp(log_x) < 1e-6:
        raise UserError(f"power_law: {x} is equal for all variations; choose another column")
    exponent, intercept = np.polyfit(log_x, log_y, 1)
    return PowerLaw(x, y, points, float(exponent), float(intercept))
