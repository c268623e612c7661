"""Stage 2 with the transformer baseline instead of AiM."""

from typing import Any

from aim_lightning.models import GPT, GPTConfig
from aim_lightning.modules.aim import AiMModule


class GPTModule(AiMModule):
    """Trains the transformer baseline exactly as AiMModule trains AiM.

    The options `backend` and `cuda_graph` have no effect, because PyTorch chooses the attention kernel.

    Args:
        network: sizes of the network.
        **options: those of AiMModule.

    Raises:
        UserError: a value out of range.
    """

    network_class = GPT

    def __init__(self, network: GPTConfig, **options: Any) -> None:
        super().__init__(network, **options)
