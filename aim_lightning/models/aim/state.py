"""What decoding remembers between two codes."""

from dataclasses import dataclass

import torch
from torch import Tensor

from aim_lightning.models.aim.aim_config import AiMConfig


@dataclass
class MixerState:
    """One layer's memory.

    conv_BKW: the last d_conv - 1 inputs of the convolution; ssm_BHPN: the recurrent state.
    """

    conv_BKW: Tensor
    ssm_BHPN: Tensor

    @classmethod
    def empty(
        cls, config: AiMConfig, batch_size: int, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> "MixerState":
        """The state before the first input: zeros."""
        conv = torch.zeros(batch_size, config.conv_dim, config.d_conv - 1, device=device, dtype=dtype)
        shape = (batch_size, config.nheads, config.headdim, config.d_state)
        return cls(conv, torch.zeros(shape, device=device, dtype=dtype))
