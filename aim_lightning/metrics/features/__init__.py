"""Frozen feature networks: images in, one vector of features an image out."""

from aim_lightning.metrics.features.effnet import EfficientNetLite0Features
from aim_lightning.metrics.features.inception import InceptionFeatures
from aim_lightning.metrics.features.network import FEATURES, LOGITS, SPATIAL, FeatureNetwork

__all__ = ["FEATURES", "LOGITS", "SPATIAL", "EfficientNetLite0Features", "FeatureNetwork", "InceptionFeatures"]
