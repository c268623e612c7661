"""The plain decoder: recurrent steps of the network, both guidance branches in one batch.

A faster step replaces this class alone: `generate` needs `logits(codes_B, index)` and nothing else.
"""

import torch
from torch import Tensor

from aim_lightning.models import AiM
from aim_lightning.sampling.filters import guide


class PlainDecoder:
    """Feeds codes one at a time and returns guided logits.

    With cfg_scale 1 the null-class branch is left out. Class modulation is computed once a sequence.
    """

    def __init__(self, model: AiM, labels_B: Tensor, cfg_scale: float, position_offset: int) -> None:
        self.model, self.cfg_scale, self.position_offset = model, cfg_scale, position_offset
        self.branches = 1 if cfg_scale == 1 else 2
        if self.branches == 2:
            labels_B = torch.cat((labels_B, torch.full_like(labels_B, model.null_class)))
        self.condition = model.backbone.condition(labels_B)
        self.states = model.new_states(labels_B.shape[0])

    def logits(self, codes_B: Tensor | None, index: int) -> Tensor:
        """Logits (B, V), float32, of code `index`, given code index - 1 (None at the start)."""
        if codes_B is not None:
            codes_B = codes_B.repeat(self.branches)
        position = index - 1 + self.position_offset
        logits = self.model.step(codes_B, position, self.condition, self.states).float()
        return logits if self.branches == 1 else guide(*logits.chunk(2), self.cfg_scale)
