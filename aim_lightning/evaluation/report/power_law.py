"""Fit power laws to the variations of a suite, such as the loss against the number of parameters."""

import math
from dataclasses import dataclass

import numpy as np

from aim_lightning.evaluation.report.comparison import Row
from aim_lightning.utils.errors import UserError


@dataclass(frozen=True)
class PowerLaw:
    """The line ln y = intercept + exponent * ln x through one point per variation, by least squares.

    Args:
        x: name of the column of x.
        y: name of the column of y.
        points: (x, y) by variation.
        exponent: slope of the line.
        intercept: ln y at x = 1.
        residual: largest distance of a point from the line in ln y.
    """

    x: str
    y: str
    points: dict[str, tuple[float, float]]
    exponent: float
    intercept: float
    residual: float

    def __str__(self) -> str:
        factor = math.exp(self.intercept)
        law = f"{self.y} = {factor:.4g} * {self.x}^{self.exponent:.4f}"
        parts = f"exponent {self.exponent:.4f}, intercept {self.intercept:.4f} (natural logarithm)"
        return f"{law}: {parts}; all points within {math.expm1(self.residual):.1%}"


def fit(x: str, y: str, rows: list[Row]) -> PowerLaw:
    """Fit a power law to the means of two columns.

    Args:
        x: name of a column.
        y: name of a column.
        rows: one per variation.

    Raises:
        UserError: a column does not exist or is not positive, or all x are equal.
    """
    columns = [{column.metric: value.mean for column, value in row.values.items()} for row in rows]
    for name in (x, y):
        if missing := next((row.name for row, values in zip(rows, columns, strict=True) if name not in values), None):
            raise UserError(f"power_law: {missing} has no column {name}; use one of {', '.join(columns[0])}")
        if any(values[name] <= 0 for values in columns):
            raise UserError(f"power_law: {name} is not positive everywhere; choose another column")
    points = {row.name: (values[x], values[y]) for row, values in zip(rows, columns, strict=True)}
    log_x, log_y = np.log(list(points.values())).T
    if np.ptp(log_x) < 1e-6:
        raise UserError(f"power_law: {x} is equal for all variations; choose another column")
    exponent, intercept = np.polyfit(log_x, log_y, 1)
    residual = np.abs(log_y - intercept - exponent * log_x).max()
    return PowerLaw(x, y, points, float(exponent), float(intercept), float(residual))
