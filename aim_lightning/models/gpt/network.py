"""GPT: our decoder-only transformer over image codes, a baseline for AiM in the same training and sampling.

Its parts are those of LlamaGen (arXiv 2406.06525): RMSNorm, SwiGLU, rotary positions in two dimensions and the class as
first token. The code and its parameter names are our own, so that published weights of LlamaGen cannot be loaded.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from aim_lightning.models.aim.block import ClassEmbedding
from aim_lightning.models.aim.recompute import Checkpointing, apply_layers
from aim_lightning.models.autoregressive import AutoregressiveNetwork
from aim_lightning.models.embedding import DeterministicEmbedding
from aim_lightning.models.gpt.block import Block, KeyValueCache, rotary_table
from aim_lightning.models.gpt.gpt_config import GPTConfig

# Without cuDNN's attention, which PyTorch prefers on H100 and later: it would build a plan for each number of keys.
STEP_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


@dataclass
class Conditioning:
    """Class token (B, D) and rotary table of all positions, computed once per sequence."""

    start_BD: Tensor
    table_LP2: Tensor


class Backbone(nn.Module):
    """Embeddings, blocks and the final norm."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.gradient_checkpointing: Checkpointing = "none"
        self.embeddings = DeterministicEmbedding(config.vocab_size, config.d_model)
        self.cls_embed = ClassEmbedding(config)
        self.token_dropout = nn.Dropout(config.token_dropout)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm_f = nn.RMSNorm(config.d_model, eps=1e-5)

    def forward(self, x_BLD: Tensor, table_LP2: Tensor, caches: list[KeyValueCache] | None = None) -> Tensor:
        """Map embedded inputs, or with `caches` the next input (B, 1, D), to hidden values of that shape."""
        mode = self.gradient_checkpointing if self.training else "none"
        layers = zip(self.layers, caches or [None] * len(self.layers), strict=True)
        (x_BLD,) = apply_layers(
            lambda x, layer, cache: (layer(x, table_LP2, cache),), layers, (self.token_dropout(x_BLD),), mode
        )  # fmt: skip
        return self.norm_f(x_BLD)


class GPT(AutoregressiveNetwork):
    """Transformer from codes and labels to logits, without tokenizer and Lightning.

    Args:
        config: sizes.
        backend: has no effect; PyTorch's scaled-dot-product attention chooses its kernel.
        gradient_checkpointing: activations that training recomputes: ``none``, the inside of all ``blocks``, or ``all``
            but the inputs of groups of about sqrt(n_layer) blocks.
    """

    def __init__(
        self, config: GPTConfig, backend: str = "auto", gradient_checkpointing: Checkpointing = "none"
    ) -> None:
        super().__init__()
        self.config, self.backend_option = config, backend
        self.backbone = Backbone(config)
        self.backbone.gradient_checkpointing = gradient_checkpointing
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.lm_head.weight = self.backbone.embeddings.weight
        if self.lm_head.weight.device.type != "meta":
            init_weights(self)

    def forward(self, codes_BL: Tensor, labels_B: Tensor) -> Tensor:
        condition = self.condition(labels_B)
        x_BLD = torch.cat((condition.start_BD[:, None], self.backbone.embeddings(codes_BL)), dim=1)
        return self.lm_head(self.backbone(x_BLD, condition.table_LP2[: x_BLD.shape[1]]))

    def condition(self, labels_B: Tensor) -> Conditioning:
        """Compute the class token and the rotary table."""
        return Conditioning(self.backbone.cls_embed(labels_B), rotary_table(self.config, labels_B.device))

    def new_states(self, batch_size: int) -> list[KeyValueCache]:
        """Return empty caches, one per layer; the last code of a sequence is never an input."""
        return [KeyValueCache(self.config.num_tokens) for _ in self.backbone.layers]

    def step(
        self, codes_B: Tensor | None, position: int, condition: Conditioning, states: list[KeyValueCache]
    ) -> Tensor:
        """Compute one decoding step; arguments as `AutoregressiveNetwork.step`."""
        x_BD, index = condition.start_BD, 0
        if codes_B is not None:
            x_BD, index = self.backbone.embeddings(codes_B), position + 1  # the class token comes first
        with sdpa_kernel(STEP_KERNELS):
            hidden_B1D = self.backbone(x_BD[:, None], condition.table_LP2[index : index + 1], states)
        return self.lm_head(hidden_B1D[:, 0])

    def state_bytes(self) -> int:
        """Return the bytes of one sequence's keys and values."""
        config = self.config
        return 2 * config.n_layer * config.num_tokens * config.d_model * self.lm_head.weight.element_size()

    def flops_per_image(self) -> int:
        """Return the floating-point operations of one image, forward and backward.

        6 per weight of a matrix and code, and three times the forward attention. That has 2 products of 2 operations
        per channel and visible key; on average a code sees (L + 1) / 2 keys.
        """
        config = self.config
        matrices = [p.numel() for p in self.backbone.layers.parameters() if p.dim() > 1]
        weights = sum(matrices) + self.lm_head.weight.numel()
        attention = config.n_layer * config.d_model * 2 * (config.num_tokens + 1)
        return config.num_tokens * (6 * weights + 3 * attention)


@torch.no_grad()
def init_weights(model: GPT) -> None:
    """Initialise every parameter in place from torch's global generator, as LlamaGen does.

    All matrices are normal with deviation 0.02. A separate head is zero, so that the first loss is ln V.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
    if not model.config.tie_embeddings:
        nn.init.zeros_(model.lm_head.weight)
