"""Choose the micro-batch of `data.max_device_batch_size: auto`."""

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from aim_lightning.models import AiM, AutoregressiveNetwork
from aim_lightning.models.aim.memory import (
    BYTES_PER_PARAMETER,
    LARGEST,
    bytes_per_image,
    fitting_micro_batch,
    largest_divisor,
)

ASSUMED_BYTES = 80 * 10**9  # of a GPU that the present machine lacks


def automatic_micro_batch(
    module: LightningModule, precision: str | int, device: torch.device, share: int, previous: int | None = None
) -> tuple[int, str]:
    """Return the micro-batch and one line with the reason.

    Args:
        module: its network has the sizes; weights may be on another device.
        precision: `trainer.precision`.
        device: a GPU is estimated by its memory, as 80 GB where it is missing; other devices take the whole share.
        share: images of a global batch per rank.
        previous: micro-batch of the run so far, which is kept; None for a new run.
    """
    size, reason = share, "the whole share of a rank"
    network = getattr(module, "network", None)
    if device.type == "cuda" and isinstance(network, AiM):
        size, reason = _fitting(network, str(precision), device, share)
    if previous is None:
        return size, f"micro-batch: {size} images per device (auto: {reason})"
    kept = largest_divisor(share, previous)
    other = f"; for a new run auto would take {size}: {reason}" if kept != size else ""
    return kept, f"micro-batch: {kept} images per device (auto: kept from the checkpoint{other})"


def training_bytes(module: LightningModule, limit: int | str | None) -> int | None:
    """Estimate the bytes of a bf16 training on one GPU, of AiM with the backend that needs most; None in stage 1.

    Args:
        module: on the meta device, with a network of stage 2.
        limit: `data.max_device_batch_size`.
    """
    network, share = getattr(module, "network", None), module.global_batch_size
    if not isinstance(network, AutoregressiveNetwork):
        return None
    if isinstance(network, AiM):
        largest = LARGEST
        image_bytes = bytes_per_image(network.config, "torch", network.backbone.gradient_checkpointing)
    else:
        largest, image_bytes = share, saved_bytes(network)
    images = min(share, largest if limit == "auto" else limit or share)
    return images * image_bytes + BYTES_PER_PARAMETER * sum(p.numel() for p in network.parameters())


def saved_bytes(network: AutoregressiveNetwork) -> int:
    """Return the bytes that the loss of one image keeps for its backward pass, counted in float32 without memory.

    Under bf16 autocast a training keeps about half of them. The rest is for the working memory of the backward pass.

    Args:
        network: on the meta device.
    """
    storages = {}

    def add(tensor: Tensor) -> Tensor:
        # Views share the storage of their base.
        storages[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    codes = torch.zeros(1, network.config.num_tokens, dtype=torch.int64, device="meta")
    with torch.autograd.graph.saved_tensors_hooks(add, lambda tensor: tensor):
        loss = network.loss(codes, codes[:, 0])
    weights = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    total = sum(size for storage, size in storages.items() if storage not in weights)
    del loss  # not earlier: a freed storage would give its identity to a new one
    return total


def _fitting(network: AiM, precision: str, device: torch.device, share: int) -> tuple[int, str]:
    dtypes = {"bf16": torch.bfloat16, "16": torch.float16}
    dtype = dtypes.get(precision.partition("-")[0], torch.float32)
    name, memory = f"an assumed GPU of {ASSUMED_BYTES / 1e9:.0f} GB", ASSUMED_BYTES
    backend = "triton" if network.backend_option == "auto" else network.backend_option
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(device)
        # A process may be limited to a part of the GPU, such as a benchmark of smaller ones.
        name, share_of_device = properties.name, torch.cuda.get_per_process_memory_fraction(device.index)
        memory = properties.total_memory * share_of_device
        backend = network.training_backend(device, dtype)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    image_bytes = bytes_per_image(network.config, backend, network.backbone.gradient_checkpointing, dtype.itemsize)
    size = fitting_micro_batch(share, image_bytes, parameters, memory)
    needed = (size * image_bytes + BYTES_PER_PARAMETER * parameters) / 1e9
    return size, f"about {needed:.1f} of {memory / 1e9:.1f} GB on {name}, backend {backend}"
