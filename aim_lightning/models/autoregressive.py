"""The members that training, sampling and evaluation use of an autoregressive network of codes."""

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F


class AutoregressiveNetwork(nn.Module, ABC):
    """Base class of networks from labels and codes to logits.

    ``network(codes_BL, labels_B)`` takes a prefix of 0 <= L <= num_tokens codes (int64, 0 to V - 1) and labels 0 to
    num_classes (num_classes = the null class) and gives logits (B, L + 1, V): position t predicts code t from the
    class and codes 0 to t - 1. The constructor takes (config, backend, gradient_checkpointing).

    Attributes:
        config: frozen dataclass of sizes, with vocab_size, num_classes and num_tokens at least.
        lm_head: linear map to logits, whose weight has the network's device and type.
        backend: name of the implementation in use.
        backend_option: name that was requested.
    """

    config: Any
    lm_head: nn.Linear
    backend: str = "torch"
    backend_option: str = "auto"

    @property
    def null_class(self) -> int:
        """Return the label of the null class."""
        return self.config.num_classes

    def loss(self, codes_BL: Tensor, labels_B: Tensor) -> Tensor:
        """Return the mean cross-entropy over all codes, nats.

        Args:
            codes_BL: complete sequences, int64 (B, num_tokens).
            labels_B: int64 (B,).
        """
        logits_BLV = self(codes_BL[:, :-1], labels_B)
        return F.cross_entropy(logits_BLV.flatten(0, 1).float(), codes_BL.flatten())

    @abstractmethod
    def condition(self, labels_B: Tensor) -> Any:
        """Compute everything that depends on the class, once per sequence, for `step`."""

    @abstractmethod
    def new_states(self, batch_size: int) -> list[Any]:
        """Return empty decoding states, one per layer."""

    @abstractmethod
    def step(self, codes_B: Tensor | None, position: int, condition: Any, states: list[Any]) -> Tensor:
        """Compute one decoding step; `states` are updated in place.

        Args:
            codes_B: the code just sampled, or None at the start.
            position: index of that code's position (its own index, as in training).
            condition: result of `condition`.
            states: result of `new_states`.

        Returns:
            logits_BV of the next code.
        """

    @abstractmethod
    def state_bytes(self) -> int:
        """Return the bytes of one sequence's decoding states."""

    @abstractmethod
    def flops_per_image(self) -> int:
        """Return the floating-point operations of one image, forward and backward."""
