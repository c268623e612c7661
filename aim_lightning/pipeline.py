"""Network and tokenizer together: labels in, pictures out."""

from collections.abc import Iterator

import torch
from torch import Tensor

from aim_lightning.models import AiM
from aim_lightning.sampling import generate
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.pixels import to_uint8


class AiMPipeline:
    """``AiMPipeline(aim, tokenizer).generate(labels)``; both are put into evaluation mode.

    Raises:
        UserError: the tokenizer's codebook or grid is not the network's.
    """

    def __init__(self, aim: AiM, tokenizer, class_names: list[str] | None = None) -> None:
        rows, columns = tokenizer.grid
        if tokenizer.codebook_size != aim.config.vocab_size or rows * columns != aim.config.num_tokens:
            raise UserError(
                f"the tokenizer has {tokenizer.codebook_size} codes on a {rows}x{columns} grid, the network "
                f"{aim.config.vocab_size} codes, {aim.config.num_tokens} an image: they do not belong together"
            )
        device = aim.lm_head.weight.device
        self.aim, self.tokenizer = aim.eval(), tokenizer.eval().to(device)
        self.class_names = class_names or [str(i) for i in range(aim.config.num_classes)]

    def to(self, device) -> "AiMPipeline":
        """Move both networks."""
        self.aim.to(device)
        self.tokenizer.to(device)
        return self

    def generate(
        self,
        labels,
        *,
        batch_size: int = 256,
        indices=None,
        **options,
    ) -> Tensor:
        """Pictures for labels.

        Args:
            labels: class indices, a list or an int64 tensor (B,).
            batch_size: images sampled at a time; bounds memory only.
            indices: number of each image, default 0 to B - 1 (see `aim_lightning.sampling.generate`).
            **options: as `aim_lightning.sampling.generate`: cfg_scale, temperature, top_k, top_p, seed, …

        Returns:
            uint8 (B, 3, H, W) on the CPU.
        """
        batches = self.batches(labels, batch_size=batch_size, indices=indices, **options)
        return torch.cat([batch.cpu() for batch in batches])

    def batches(self, labels, *, batch_size: int = 256, indices=None, **options) -> Iterator[Tensor]:
        """The same as uint8 batches (b, 3, H, W) on the network's device, one at a time."""
        labels_B = torch.as_tensor(labels, dtype=torch.int64)
        indices_B = torch.arange(len(labels_B)) if indices is None else torch.as_tensor(indices)
        for part in torch.arange(len(labels_B)).split(batch_size):
            codes_BL = generate(self.aim, labels_B[part], indices_B=indices_B[part], **options)
            yield to_uint8(self.tokenizer.decode(codes_BL))
