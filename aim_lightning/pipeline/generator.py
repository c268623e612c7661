"""The generator: labels in, pictures out."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from aim_lightning.models import AiM
from aim_lightning.sampling import generate
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.pixels import to_uint8
from aim_lightning.weights import export_aim, import_aim, import_vq, read_source
from aim_lightning.weights.hub import local_folder


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

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        backend: str = "auto",
    ) -> "AiMPipeline":
        """The generator of a folder in the published layout, or of a hub repository: ``"hp-l33/aim-base"``.

        Args:
            source: folder of config.json and model.safetensors, a weights file, or a hub id.
            revision: branch, tag or commit of the repository.
            cache_dir: where the hub's files are kept; its own default otherwise.
            token: for repositories that need one.
            local_files_only: take the copy on this machine, ask nobody.
            backend: of the network, see `AiM`.

        Raises:
            UserError: no such folder or repository, no connection, unknown fields in config.json, no tokenizer in it,
                names that are missing, surplus or misshapen, or a backend that cannot be had.
        """
        asked = {"revision": revision, "cache_dir": cache_dir, "token": token, "local_files_only": local_files_only}
        found = read_source(local_folder(source, **asked))
        aim, tokenizer = import_aim(found, backend=backend), import_vq(found).requires_grad_(False)
        return cls(aim, tokenizer, found.class_names)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write config.json and model.safetensors in the published layout; the folder is complete or absent.

        Raises:
            UserError: the folder holds something else, or the tokenizer is no VQModel.
        """
        return export_aim(self.aim, folder, tokenizer=self.tokenizer, class_names=self.class_names)

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
            # A short last batch is filled up: the fast decoder keeps one shape, and a block is always computed alike.
            whole = part if len(part) == len(labels_B) else part[torch.arange(batch_size) % len(part)]
            codes_BL = generate(self.aim, labels_B[whole], indices_B=indices_B[whole], **options)
            yield to_uint8(self.tokenizer.decode(codes_BL[: len(part)]))
