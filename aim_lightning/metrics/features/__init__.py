"""Frozen feature networks, which map each image to a vector of features."""

from aim_lightning.metrics.features.dinov2 import DINOv2Features
from aim_lightning.metrics.features.effnet import EfficientNetLite0Features
from aim_lightning.metrics.features.inception import InceptionFeatures
from aim_lightning.metrics.features.network import FEATURES, LOGITS, SPATIAL, FeatureNetwork
from aim_lightning.metrics.features.torch_features import TorchFeatures

__all__ = [
    "FEATURES", "LOGITS", "SPATIAL", "DINOv2Features", "EfficientNetLite0Features", "FeatureNetwork",
    "InceptionFeatures", "TorchFeatures",
]  # fmt: skip
