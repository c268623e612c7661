"""Random weights in the format of the published Inception, made once."""

import io
from pathlib import Path

import pytest
import torch
from torch import nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3


@pytest.fixture(scope="session")
def inception_file(tmp_path_factory) -> Path:
    """A file that torch-fidelity reads as its own."""

    class Unread(FeatureExtractorInceptionV3):
        def load_state_dict(self, state_dict, strict=True):
            return None

    nothing = io.BytesIO()
    torch.save({}, nothing)
    nothing.seek(0)
    torch.manual_seed(0)
    network = Unread("random", ["2048"], feature_extractor_weights_path=nothing)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)  # the default shrinks activations to nothing in 50 layers
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(network.state_dict(), path)
    return path
