"""AiM: class-conditional autoregression over image codes with Mamba-2 (arXiv 2408.12245, section 3).

Shapes: B images, L codes so far, V codebook size, D = d_model. Parameter names are those of the published code.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from aim_lightning.models.aim.aim_config import AiMConfig
from aim_lightning.models.aim.backends import Backend, choose_backend, require_backend
from aim_lightning.models.aim.backends.plain import TorchBackend
from aim_lightning.models.aim.block import Block, modulation_head
from aim_lightning.models.aim.init import init_weights
from aim_lightning.models.aim.mixer import Mamba2Mixer
from aim_lightning.models.aim.norm import RMSNorm
from aim_lightning.models.aim.state import MixerState


class CodeEmbeddings(nn.Module):
    """Embedding of codes, plus the absolute position embedding where the configuration has one."""

    def __init__(self, config: AiMConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.d_model)
        if config.position_embedding:
            self.position_embeddings = nn.Embedding(config.num_tokens + 1, config.d_model)

    def forward(self, codes: Tensor, positions: Tensor) -> Tensor:
        """codes and positions: int64 of shapes that broadcast; adds the last dimension D."""
        words = self.word_embeddings(codes)
        return words + self.position_embeddings(positions) if hasattr(self, "position_embeddings") else words


class ClassEmbedding(nn.Module):
    """Labels to vectors; the last row of the table is the null class of guidance."""

    def __init__(self, config: AiMConfig) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(config.num_classes + 1, config.d_model)

    def forward(self, labels_B: Tensor) -> Tensor:
        return self.embedding_table(labels_B)


class FinalLayer(nn.Module):
    """A second RMSNorm, modulated by the class (shift, scale) unless adaln is none."""

    def __init__(self, config: AiMConfig) -> None:
        super().__init__()
        self.norm_final = RMSNorm(config.d_model)
        if config.adaln != "none":
            self.adaLN_modulation = modulation_head(config.d_model, 2)

    def modulation(self, class_BD: Tensor) -> Tensor | None:
        """(B, 2, D): shift, scale."""
        if not hasattr(self, "adaLN_modulation"):
            return None
        return self.adaLN_modulation(class_BD).unflatten(-1, (2, -1))

    def forward(self, h: Tensor, rows_B2D: Tensor | None) -> Tensor:
        h = self.norm_final(h)
        if rows_B2D is None:
            return h
        rows = rows_B2D.transpose(0, 1)
        shift, scale = rows[:, :, None] if h.dim() == 3 else rows
        return h * (1 + scale) + shift


@dataclass
class Conditioning:
    """All that the class decides, computed once a sequence.

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
        self.embeddings = CodeEmbeddings(config)
        self.cls_embed = ClassEmbedding(config)
        if config.adaln == "group":
            self.adaln_group = modulation_head(config.d_model, config.num_groups * config.modulation_rows)
        self.token_dropout = nn.Dropout(config.token_dropout)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm_f = RMSNorm(config.d_model)
        self.final_layer = FinalLayer(config)

    def condition(self, labels_B: Tensor) -> Conditioning:
        """Class embedding and the modulation of every layer; layer i takes group i % num_groups."""
        class_BD = self.cls_embed(labels_B)
        groups = [None]
        if self.config.adaln == "group":
            shape = (self.config.num_groups, self.config.modulation_rows, -1)
            groups = self.adaln_group(class_BD).unflatten(-1, shape).unbind(1)
        rows = [layer.modulation(class_BD, groups[i % len(groups)]) for i, layer in enumerate(self.layers)]
        return Conditioning(class_BD, rows, self.final_layer.modulation(class_BD))

    def forward(self, x: Tensor, condition: Conditioning, states: list[MixerState] | None = None) -> Tensor:
        """Embedded inputs (B, L, D), or with `states` one position (B, D), to hidden values of that shape."""
        x, residual = self.token_dropout(x), None
        for i, layer in enumerate(self.layers):
            x, residual = layer(x, residual, condition.layers[i], None if states is None else states[i])
        h, _ = self.backend.add_norm(x, residual, self.norm_f)
        return self.final_layer(h, condition.final_B2D).to(x.dtype)


class AiM(nn.Module):
    """The network alone: codes and labels to logits; no tokenizer, no Lightning.

    ``AiM(config)(codes_BL, labels_B)`` takes a prefix of 0 <= L <= num_tokens codes (int64, 0 to V - 1) and
    labels 0 to num_classes (num_classes = the null class) and gives logits (B, L + 1, V): position t predicts
    code t from the class and codes 0 to t - 1.

    Args:
        config: sizes.
        backend: ``torch`` (any device), ``mamba_ssm`` (its kernels, NVIDIA GPUs) or ``auto`` (mamba_ssm where it can be
            had, else torch; the choice is logged when it is made: on a GPU, or at the first use). Taken anew whenever
            the network is moved; same parameters.

    Raises:
        UserError: mamba_ssm is asked for and not installed; used where the weights cannot run on it.
    """

    def __init__(self, config: AiMConfig, backend: str = "auto") -> None:
        super().__init__()
        require_backend(backend)
        self.config, self.wanted_backend = config, backend
        self.backbone = Backbone(config)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.lm_head.weight = self.backbone.embeddings.word_embeddings.weight
        if self.lm_head.weight.device.type != "meta":
            init_weights(self)
        self._place_backend()

    @property
    def backend(self) -> str:
        """The backend in use: torch or mamba_ssm."""
        return self.backbone.backend.name

    def _place_backend(self) -> None:
        """The backend for where the weights are now.

        On a CPU auto decides, and says so, at the first use: the network may still be on its way to a GPU.
        """
        waits = self.wanted_backend == "auto" and self.lm_head.weight.device.type in ("cpu", "meta")
        self._settled = not waits
        if waits:
            self._set_backend(TorchBackend())
        else:
            self._take_backend()

    def _take_backend(self) -> None:
        weight = self.lm_head.weight
        self._set_backend(choose_backend(self.wanted_backend, self.config, weight.device, weight.dtype))

    def _set_backend(self, backend: Backend) -> None:
        for module in self.modules():
            if isinstance(module, Backbone | Block | Mamba2Mixer):
                module.backend = backend

    def _settle(self) -> None:
        """Make the choice that waited for the first use."""
        if not self._settled and not torch.compiler.is_compiling():
            self._settled = True
            self._take_backend()

    def _apply(self, fn, recurse: bool = True) -> "AiM":
        """Move or convert, then take the backend that fits the new device and type."""
        super()._apply(fn, recurse)
        self._place_backend()
        return self

    def __call__(self, *args, **options) -> Tensor:
        self._settle()  # not in forward, which may be compiled: nothing is logged there
        return super().__call__(*args, **options)

    @property
    def null_class(self) -> int:
        """The label that stands for no class."""
        return self.config.num_classes

    def forward(self, codes_BL: Tensor, labels_B: Tensor) -> Tensor:
        condition = self.backbone.condition(labels_B)
        positions_L = torch.arange(codes_BL.shape[1], device=codes_BL.device)
        codes_BLD = self.backbone.embeddings(codes_BL, positions_L)
        x_BLD = torch.cat((condition.start_BD[:, None], codes_BLD), dim=1)
        return self.lm_head(self.backbone(x_BLD, condition))

    def new_states(self, batch_size: int) -> list[MixerState]:
        """Empty decoding states, one a layer, on the network's device; float32, or the network's wider type."""
        weight = self.lm_head.weight
        dtype = torch.promote_types(weight.dtype, torch.float32)
        return [MixerState.empty(self.config, batch_size, weight.device, dtype) for _ in self.backbone.layers]

    def step(self, codes_B: Tensor | None, position: int, condition: Conditioning, states: list[MixerState]) -> Tensor:
        """One decoding step; `states` are updated in place.

        Args:
            codes_B: the code just drawn, or None at the start.
            position: index of that code's position embedding (its own index, as in training).

        Returns:
            logits_BV of the next code.
        """
        self._settle()
        x_BD = condition.start_BD
        if codes_B is not None:
            x_BD = self.backbone.embeddings(codes_B, torch.tensor(position, device=codes_B.device))
        return self.lm_head(self.backbone(x_BD, condition, states))

    def flops_per_image(self) -> int:
        """Floating-point operations of one image, forward and backward.

        6 per weight and use, and three times the forward scan (4 per state value and code: update and output).
        Class modulation is used once an image, everything else once a code.
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
