"""AiM: class-conditional autoregression over image codes with Mamba-2 (arXiv 2408.12245, section 3).

Shapes: B images, L codes so far, V codebook size, D = d_model. Parameter names are those of the published code.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from aim_lightning.models.aim.aim_config import AiMConfig
from aim_lightning.models.aim.backends import Backend, choose_backend, require_backend
from aim_lightning.models.aim.backends.plain import MixerState, TorchBackend
from aim_lightning.models.aim.block import Block, ClassEmbedding, CodeEmbeddings, FinalLayer, modulation_head
from aim_lightning.models.aim.mixer import Mamba2Mixer, RMSNorm
from aim_lightning.models.aim.recompute import Checkpointing, apply_layers
from aim_lightning.models.autoregressive import AutoregressiveNetwork


@dataclass
class Conditioning:
    """Everything that depends on the class, computed once per sequence.

    start_BD: the input of step 0; layers: rows (B, R, D) by layer; final_B2D: rows of the final layer.
    """

    start_BD: Tensor
    layers: list[Tensor | None]
    final_B2D: Tensor | None


class Backbone(nn.Module):
    """Embeddings, blocks and norms under the published prefix `backbone`."""

    def __init__(self, config: AiMConfig) -> None:
        super().__init__()
        self.config = config
        self.backend: Backend = TorchBackend()
        self.gradient_checkpointing: Checkpointing = "none"
        self.embeddings = CodeEmbeddings(config)
        self.cls_embed = ClassEmbedding(config)
        if config.adaln == "group":
            self.adaln_group = modulation_head(config.d_model, config.num_groups * config.modulation_rows)
        self.token_dropout = nn.Dropout(config.token_dropout)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm_f = RMSNorm(config.d_model)
        self.final_layer = FinalLayer(config)

    def condition(self, labels_B: Tensor) -> Conditioning:
        """Compute the class embedding and the modulation of every layer."""
        class_BD = self.cls_embed(labels_B)
        return Conditioning(class_BD, self.modulations(class_BD), self.final_layer.modulation(class_BD))

    def modulations(self, class_BD: Tensor) -> list[Tensor | None]:
        """Return the rows (B, R, D) of every layer; layer i takes group i % num_groups."""
        groups = [None]
        if self.config.adaln == "group":
            shape = (self.config.num_groups, self.config.modulation_rows, -1)
            groups = self.adaln_group(class_BD).unflatten(-1, shape).unbind(1)
        return [layer.modulation(class_BD, groups[i % len(groups)]) for i, layer in enumerate(self.layers)]

    @property
    def checkpointing(self) -> Checkpointing:
        """Return what a backward pass recomputes now; nothing in evaluation mode."""
        return self.gradient_checkpointing if self.training else "none"

    def forward(self, x: Tensor, condition: Conditioning, states: list[MixerState] | None = None) -> Tensor:
        """Map embedded inputs (B, L, D), or with `states` one position (B, D), to hidden values of that shape."""
        layers = zip(self.layers, condition.layers, states or [None] * len(self.layers), strict=True)
        x, residual = apply_layers(
            lambda x, residual, layer, *items: layer(x, residual, *items),
            layers, (self.token_dropout(x), None), self.checkpointing,
        )  # fmt: skip
        h, _ = self.backend.add_norm(x, residual, self.norm_f)
        return self.final_layer(h, condition.final_B2D).to(x.dtype)


class AiM(AutoregressiveNetwork):
    """Autoregressive network from codes and labels to logits, without tokenizer and Lightning.

    ``AiM(config)(codes_BL, labels_B)`` gives logits (B, L + 1, V); see `AutoregressiveNetwork`.

    Args:
        config: sizes.
        backend: ``torch`` (any device), ``triton`` (our kernels, NVIDIA GPUs), ``mamba_ssm`` (its kernels) or ``auto``:
            triton, else mamba_ssm, else torch. The choice is logged when it is made: on a GPU, or at the first use.
            It is made again whenever the network is moved; the parameters are the same.
        gradient_checkpointing: activations that training recomputes: ``none``, the inside of all ``blocks``, or ``all``
            but the inputs of groups of about sqrt(n_layer) blocks.

    Raises:
        UserError: mamba_ssm is requested and not installed; at the first use, the backend
            cannot run on the device of the weights.
    """

    def __init__(
        self, config: AiMConfig, backend: str = "auto", gradient_checkpointing: Checkpointing = "none"
    ) -> None:
        super().__init__()
        require_backend(backend)
        self.config, self.backend_option = config, backend
        self.backbone = Backbone(config)
        self.backbone.gradient_checkpointing = gradient_checkpointing
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.lm_head.weight = self.backbone.embeddings.word_embeddings.weight  # tied, as published
        if self.lm_head.weight.device.type != "meta":
            init_weights(self)
        self._choose_backend()

    @property
    def backend(self) -> str:
        """Return the name of the backend in use: torch, triton or mamba_ssm."""
        return self.backbone.backend.name

    def _choose_backend(self, at_use: bool = False) -> None:
        """Choose the backend for the device that holds the weights.

        On a CPU, auto waits until the first use: the network may still be moved to a GPU.
        """
        weight = self.lm_head.weight
        self._settled = at_use or self.backend_option != "auto" or weight.device.type not in ("cpu", "meta")
        backend: Backend = TorchBackend()
        if self._settled:
            backend = choose_backend(self.backend_option, self.config, weight.device, weight.dtype)
        for module in self.modules():
            if isinstance(module, Backbone | Block | Mamba2Mixer):
                module.backend = backend

    def _settle(self) -> None:
        """Make the choice that was deferred to the first use."""
        if not self._settled and not torch.compiler.is_compiling():
            self._choose_backend(at_use=True)

    def _apply(self, fn, recurse: bool = True) -> "AiM":
        """Move or convert, then choose the backend for the new device and type."""
        super()._apply(fn, recurse)
        self._choose_backend()
        return self

    def __call__(self, *args, **options) -> Tensor:
        self._settle()  # not in forward, which may be compiled: nothing is logged there
        return super().__call__(*args, **options)

    def forward(self, codes_BL: Tensor, labels_B: Tensor) -> Tensor:
        return self.lm_head(self._hidden(codes_BL, labels_B))

    def loss(self, codes_BL: Tensor, labels_B: Tensor) -> Tensor:
        """Return the mean cross-entropy over all codes, nats.

        Args:
            codes_BL: complete sequences, int64 (B, num_tokens).
            labels_B: int64 (B,).
        """
        self._settle()
        if self._is_fused():
            # In chunks of rows, so that no float32 logits are in memory.
            hidden_BLD = self._hidden(codes_BL[:, :-1], labels_B)
            return self.backbone.backend.cross_entropy(hidden_BLD, self.lm_head.weight, codes_BL)
        return super().loss(codes_BL, labels_B)

    def _hidden(self, codes_BL: Tensor, labels_B: Tensor) -> Tensor:
        """Return the inputs of the head (B, L + 1, D)."""
        positions_L = torch.arange(codes_BL.shape[1], device=codes_BL.device)
        codes_BLD = self.backbone.embeddings(codes_BL, positions_L)
        if self._is_fused():
            class_BD = self.backbone.cls_embed(labels_B)
            x_BLD = torch.cat((class_BD[:, None], codes_BLD), dim=1)
            return self.backbone.backend.hidden(self.backbone, x_BLD, class_BD)
        condition = self.backbone.condition(labels_B)
        x_BLD = torch.cat((condition.start_BD[:, None], codes_BLD), dim=1)
        return self.backbone(x_BLD, condition)

    def _is_fused(self) -> bool:
        backend = self.backbone.backend
        return backend.name == "triton" and backend.takes(self.backbone, self.lm_head.weight)

    def training_backend(self, device: torch.device, dtype: torch.dtype) -> str:
        """Return the name of the backend that will train the network on a device.

        Args:
            device: the weights may be elsewhere at present.
            dtype: type of the matrix products.

        Raises:
            UserError: the backend that was requested cannot run there.
        """
        backend = choose_backend(self.backend_option, self.config, device, self.lm_head.weight.dtype)
        is_replaced = backend.name == "triton" and not backend.trains(self.config, dtype)
        return backend.other.name if is_replaced else backend.name

    def condition(self, labels_B: Tensor) -> Conditioning:
        """Compute the class embedding and the modulation of every layer."""
        return self.backbone.condition(labels_B)

    def new_states(self, batch_size: int) -> list[MixerState]:
        """Return empty decoding states, one per layer, on the network's device, in float32 or wider."""
        weight = self.lm_head.weight
        dtype = torch.promote_types(weight.dtype, torch.float32)
        return [MixerState.empty(self.config, batch_size, weight.device, dtype) for _ in self.backbone.layers]

    def step(self, codes_B: Tensor | None, position: int, condition: Conditioning, states: list[MixerState]) -> Tensor:
        """Compute one decoding step; arguments as `AutoregressiveNetwork.step`."""
        self._settle()
        x_BD = condition.start_BD
        if codes_B is not None:
            # Filled on the device: a copy from the host would wait for all of its work.
            x_BD = self.backbone.embeddings(codes_B, torch.full((), position, device=codes_B.device))
        return self.lm_head(self.backbone(x_BD, condition, states))

    def state_bytes(self) -> int:
        """Return the bytes of one sequence's decoding states."""
        config = self.config
        state = config.nheads * config.headdim * config.d_state + config.conv_dim * (config.d_conv - 1)
        return 4 * config.n_layer * state

    def flops_per_image(self) -> int:
        """Return the floating-point operations of one image, forward and backward.

        6 per weight and use, and three times the forward scan (4 per state value and code: update and output).
        Class modulation is used once per image, everything else once per code.
        """
        config = self.config
        once, per_code = 0, 2 * config.n_layer * config.d_inner * config.d_state
        for name, parameter in self.named_parameters():  # the tied head counts once, as the head
            modulation = "adaLN_modulation" in name or "adaln_group" in name
            if modulation:
                once += parameter.numel()
            elif "position_embeddings" not in name and "cls_embed" not in name:
                per_code += parameter.numel()
        return 6 * (once + per_code * config.num_tokens)


@torch.no_grad()
def init_weights(model: nn.Module) -> None:
    """Initialise every parameter of an AiM in place from torch's global generator.

    As published (hp-l33/AiM and mamba_ssm.models.mixer_seq_simple). A new plain-adaLN network is the identity
    through every block: its modulation, gates included, is zero. The group form starts with small random gates.
    """
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        elif isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
        elif isinstance(module, Mamba2Mixer):
            module.init_weights()
    # Each of the n residual branches is divided by sqrt(n), so that the depth does not scale the residual's variance.
    branches = model.config.n_layer * (2 if model.config.d_intermediate else 1)
    for name, parameter in model.named_parameters():
        if name.endswith(("out_proj.weight", "mlp.fc2.weight")):
            nn.init.kaiming_uniform_(parameter, a=math.sqrt(5))
            parameter.div_(math.sqrt(branches))
    # A second loop: the order of random numbers is part of what a seed reproduces.
    for name, parameter in model.named_parameters():
        if "adaLN_modulation" in name:
            nn.init.zeros_(parameter)
        elif name.endswith("scale_shift_table"):
            nn.init.normal_(parameter, std=1 / math.sqrt(parameter.shape[-1]))
