"""Values that are not finite, noticed without making the device wait."""

import torch
from torch import Tensor

from aim_lightning.utils.errors import UserError


class FiniteValues:
    """For metrics (torchmetrics' `Metric`): `note` in each update, `check` where results are worked out.

    The note stays on the device: asking a GPU in each update would stop it until the answer is there. It is added up
    over processes like any state, so that all of them end, not one while the others wait for it.
    """

    def watch(self) -> None:
        """In the constructor."""
        self.add_state("not_finite", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def note(self, values: Tensor) -> None:
        """Remember whether any is NaN or infinite."""
        self.not_finite += (~values.isfinite()).any()

    def check(self) -> None:
        """Raises UserError where any value was NaN or infinite."""
        if self.not_finite:
            raise UserError(
                f"{type(self).__name__} was given features that are not finite (NaN): the feature network's weights "
                "are damaged, or no weights of it; fetch them again"
            )
