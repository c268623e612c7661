"""Networks: plain torch modules with the published names, no Lightning."""

from aim_lightning.models.aim.aim_config import AiMConfig
from aim_lightning.models.aim.network import AiM
from aim_lightning.models.autoregressive import AutoregressiveNetwork
from aim_lightning.models.gpt.gpt_config import GPTConfig
from aim_lightning.models.gpt.network import GPT
from aim_lightning.models.patchgan import PatchGAN, PatchGANConfig
from aim_lightning.models.vq.model import VQModel
from aim_lightning.models.vq.vq_config import VQConfig

# Networks of stage 2 by the class of their configuration.
NETWORKS: dict[type, type[AutoregressiveNetwork]] = {AiMConfig: AiM, GPTConfig: GPT}

__all__ = [
    "GPT", "NETWORKS", "AiM", "AiMConfig", "AutoregressiveNetwork", "GPTConfig",
    "PatchGAN", "PatchGANConfig", "VQConfig", "VQModel",
]  # fmt: skip
