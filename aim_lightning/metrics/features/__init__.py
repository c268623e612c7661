"""Frozen feature networks: pictures in, one vector of features a picture out."""

from aim_lightning.metrics.features.effnet import EfficientNetLite0Features
from aim_lightning.metrics.features.inception import InceptionFeatures
from aim_lightning.metrics.features.network import FEATURES, LOGITS, SPATIAL, FeatureNetwork

__all__ = ["FEATURES", "LOGITS", "SPATIAL", "EfficientNetLite0Features", "FeatureNetwork", "InceptionFeatures"]
