"""Class agreement: how often a linear probe on frozen features predicts the requested class."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torchmetrics import MeanMetric

# Weight of the penalty L2 / 2 * ||W||^2 next to the mean cross-entropy, on standardised features.
L2 = 0.03  # the best of 0.001, 0.01, 0.03 and 0.1 on the 2,000 embedded val images
MAX_ITERATIONS = 100  # of LBFGS; the accuracy is stable long before it converges
SETTINGS = {"probe": "logistic regression, LBFGS", "l2": L2, "max_iterations": MAX_ITERATIONS}


def fit_probe(features: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Train multinomial logistic regression from zero on standardised features, on their device.

    The same inputs give the same probe.

    Args:
        features: (N, F) floats.
        labels: (N,) integers in 0..num_classes-1.
        num_classes: rows of the weight, C.

    Returns:
        weight (C, F) and bias (C,), float64, with the standardisation folded in.
    """
    # Lightning evaluates in inference mode, without gradients.
    with torch.inference_mode(False), torch.enable_grad():
        x, y = features.detach().clone().double(), labels.detach().clone().long()
        mean, scale = x.mean(0), x.std(0, correction=0)
        scale = torch.where(scale > 0, scale, 1)  # a constant feature keeps weight zero
        # Standardised features condition LBFGS; the scale is folded into the weights afterwards.
        weight, bias = _minimise((x - mean) / scale, y, num_classes)
        weight = weight / scale
        return weight, bias - weight @ mean


def predict(features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return the most likely class of each row, int64 (N,), for features (N, F) and the result of `fit_probe`."""
    return (features.to(weight.dtype) @ weight.T + bias).argmax(1)


def _minimise(x: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    weight = x.new_zeros(num_classes, x.shape[1]).requires_grad_()
    bias = x.new_zeros(num_classes).requires_grad_()
    options = {"max_iter": MAX_ITERATIONS, "tolerance_grad": 1e-6, "line_search_fn": "strong_wolfe"}
    optimizer = torch.optim.LBFGS([weight, bias], **options)

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = cross_entropy(x @ weight.T + bias, labels) + L2 / 2 * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return weight.detach(), bias.detach()


class ClassAgreement(MeanMetric):
    """Share of the samples whose requested class the probe predicts, 0 to 1, over all ranks.

    `compute` returns a float64 scalar; NaN without samples.

    Args:
        weight: (C, F), of `fit_probe`.
        bias: (C,), of `fit_probe`.
        kwargs: options of torchmetrics' `MeanMetric`.
    """

    higher_is_better = True

    def __init__(self, weight: Tensor, bias: Tensor, **kwargs) -> None:
        super().__init__(nan_strategy="disable", **kwargs)  # the search for NaN would wait for the GPU
        self.set_dtype(torch.float64)
        self.register_buffer("probe_weight", weight)
        self.register_buffer("probe_bias", bias)

    def update(self, features: Tensor, labels: Tensor) -> None:
        """Add a batch of samples.

        Args:
            features: (B, F), B may be 0.
            labels: (B,) requested classes.
        """
        super().update((predict(features, self.probe_weight, self.probe_bias) == labels).double())
