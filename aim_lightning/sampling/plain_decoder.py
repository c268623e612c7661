"""The plain decoder: recurrent steps of the network, both guidance branches in one batch.

The reference that `sampling/fast` is tested against.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from aim_lightning.models import AutoregressiveNetwork
from aim_lightning.sampling.filters import Filters, diverged, guide, refuse_diverged, sample_codes
from aim_lightning.utils.random import hash_uniform


class PlainDecoder:
    """Take codes one at a time and return guided logits.

    scales_L is the guidance of each step. Without any (1 everywhere) the null-class branch is left out; where only
    some steps have none it runs along, because its state must follow the codes. Class modulation is computed once per
    sequence.
    """

    def __init__(
        self, model: AutoregressiveNetwork, labels_B: Tensor, scales_L: list[float], position_offset: int
    ) -> None:
        self.model, self.scales_L, self.position_offset = model, scales_L, position_offset
        self.branches = 1 if all(scale == 1 for scale in scales_L) else 2
        if self.branches == 2:
            # Both branches in one batch: conditional rows first, then those of the null class.
            labels_B = torch.cat((labels_B, torch.full_like(labels_B, model.null_class)))
        self.condition = model.condition(labels_B)
        self.states = model.new_states(labels_B.shape[0])

    def logits(self, codes_B: Tensor | None, index: int) -> Tensor:
        """Return logits (B, V), float32, of code `index`, given code index - 1 (None at the start)."""
        if codes_B is not None:
            codes_B = codes_B.repeat(self.branches)
        position = index - 1 + self.position_offset
        logits = self.model.step(codes_B, position, self.condition, self.states).float()
        if self.branches == 1:
            return logits
        cond_BV, uncond_BV = logits.chunk(2)
        # At scale 1 the formula would round: such a step gives the conditional logits exactly.
        return cond_BV if self.scales_L[index] == 1 else guide(cond_BV, uncond_BV, self.scales_L[index])


def run_plain(
    model: AutoregressiveNetwork,
    labels_B: Tensor,
    indices_B: Tensor,
    *,
    seed: int,
    scales: list[float],
    filters: Filters,
    position_offset: int,
    on_step: Callable[[int, Tensor], None] | None,
) -> Tensor:
    """Return codes_BL by the network's own steps; arguments as `FastDecoder.run`."""
    decoder = PlainDecoder(model, labels_B, scales, position_offset)
    # A hash of (seed, image, step) instead of a generator: no number depends on batch sizes or on other images.
    steps = torch.arange(model.config.num_tokens, device=labels_B.device)
    uniform_BL = hash_uniform("sample", seed, indices_B[:, None], steps)
    codes_BL = torch.zeros_like(uniform_BL, dtype=torch.int64)
    bad = torch.zeros((), dtype=torch.bool, device=uniform_BL.device)
    for step in range(model.config.num_tokens):
        logits_BV = decoder.logits(codes_BL[:, step - 1] if step else None, step)
        bad |= diverged(logits_BV)  # read once at the end: reading here would wait for the device at every step
        codes_BL[:, step] = sample_codes(logits_BV, uniform_BL[:, step], filters)
        if on_step is not None:
            on_step(step, codes_BL[:, : step + 1])
    refuse_diverged(bad)
    return codes_BL


def state_bytes(model: AutoregressiveNetwork, guided: bool) -> int:
    """Return the bytes of one image's states and logits, nearly all that grows with the batch."""
    return (2 if guided else 1) * (model.state_bytes() + 4 * model.config.vocab_size)
