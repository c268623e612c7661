"""Networks: plain torch modules with the published names, no Lightning."""

from aim_lightning.models.aim.aim_config import AiMConfig
from aim_lightning.models.aim.network import AiM
from aim_lightning.models.patchgan import PatchGAN, PatchGANConfig
from aim_lightning.models.vq.model import VQModel
from aim_lightning.models.vq.vq_config import VQConfig

__all__ = ["AiM", "AiMConfig", "PatchGAN", "PatchGANConfig", "VQConfig", "VQModel"]
