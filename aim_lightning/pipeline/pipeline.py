"""The pipeline: labels in, images out."""

import difflib
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from aim_lightning.models import AutoregressiveNetwork
from aim_lightning.pipeline.pixel_decoder import PixelDecoder, Pixels, resolve_pixels, weights_version
from aim_lightning.sampling import (
    SamplingOptions,
    generate,
    image_bytes,
    out_of_memory,
    release_decoders,
    resolve,
    with_sampling_options,
)
from aim_lightning.utils.errors import UserError, first_line
from aim_lightning.utils.grid import labelled_grid
from aim_lightning.utils.pixels import to_uint8
from aim_lightning.weights import export_aim, import_aim, import_vq, read_source
from aim_lightning.weights.hub import local_directory

GREY = 128  # of missing codes in previews


class AiMPipeline:
    """Generate images with a network and a tokenizer: ``AiMPipeline(aim, tokenizer).generate(labels)``.

    Both are put into evaluation mode. The memory that the fast decoder keeps on the device is released with the
    pipeline.

    Args:
        aim: the network.
        tokenizer: with `decode`, `grid`, `codebook_size` and `weights_hash`.
        class_names: one name per class; their numbers by default.
        label_dropout: share of training images without their class; guidance is refused for 0 (the null class is
            untrained) and 1 (the classes are). None = not recorded.
        allow_untrained_guidance: sample with guidance nevertheless.

    Raises:
        UserError: the tokenizer's codebook or grid is not the network's.
    """

    def __init__(
        self,
        aim: AutoregressiveNetwork,
        tokenizer,
        class_names: list[str] | None = None,
        label_dropout: float | None = None,
        allow_untrained_guidance: bool = False,
    ) -> None:
        rows, columns = tokenizer.grid
        if tokenizer.codebook_size != aim.config.vocab_size or rows * columns != aim.config.num_tokens:
            codes = f"{tokenizer.codebook_size} codes on a {rows}x{columns} grid"
            expected = f"{aim.config.vocab_size} codes, {aim.config.num_tokens} per image"
            raise UserError(f"the tokenizer has {codes}, the network {expected}: they do not belong together")
        device = aim.lm_head.weight.device
        self.aim, self.tokenizer = aim.eval(), tokenizer.eval().to(device)
        self.class_names = class_names or [str(i) for i in range(aim.config.num_classes)]
        if isinstance(class_names, str) or len(self.class_names) != aim.config.num_classes:
            raise UserError(f"class_names is {class_names!r:.60}; give a list of {aim.config.num_classes} names")
        self.label_dropout, self.allow_untrained_guidance = label_dropout, allow_untrained_guidance
        self._pixels: dict[tuple, PixelDecoder] = {}
        self._auto: dict[tuple, int] = {}
        # Decoders are kept per network, which may live longer than its pipeline (as in validation during training).
        weakref.finalize(self, release_decoders, aim).atexit = False

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        tokenizer: Any = None,
        backend: str = "auto",
        device: str | torch.device = "cpu",
        allow_untrained_guidance: bool = False,
    ) -> "AiMPipeline":
        """Load a directory in the published layout, or a hub repository: ``"hp-l33/aim-base"``.

        Args:
            source: directory of config.json and model.safetensors, a weights file, or a hub id.
            revision: branch, tag or commit of the repository.
            cache_dir: where the hub's files are kept; the hub's default otherwise.
            token: for repositories that need one.
            local_files_only: use the copy on this machine, without network access.
            tokenizer: the tokenizer to use; by default the one in the source.
            backend: of the network, see `AiM`.
            device: where to generate, such as "cuda".
            allow_untrained_guidance: see `AiMPipeline`.

        Raises:
            UserError: no such directory or repository, no connection, unknown fields in config.json, no tokenizer or
                another one than the network was trained with, names that are missing, surplus or misshapen, a run of
                this project, or a backend or device that is not available.
        """
        hub = {"revision": revision, "cache_dir": cache_dir, "token": token, "local_files_only": local_files_only}
        weights = read_source(local_directory(source, **hub))
        if weights.run is not None:
            raise UserError(f"{source} is a run or a checkpoint of this project; use aim_lightning.load for it")
        aim = import_aim(weights, backend=backend)
        if tokenizer is None:
            if not weights.parts.vq:
                raise UserError(f"{source} holds no tokenizer; pass tokenizer=, such as load_tokenizer(SOURCE)")
            # Frozen: a pipeline never trains its tokenizer.
            tokenizer = import_vq(weights).requires_grad_(False)
        weights.check_tokenizer(tokenizer)
        pipeline = cls(aim, tokenizer, weights.class_names, weights.label_dropout, allow_untrained_guidance)
        return pipeline.to(device)

    def save_pretrained(self, directory: str | Path) -> Path:
        """Write config.json and model.safetensors in the published layout; the directory is complete or absent.

        Raises:
            UserError: the directory contains something else, or the tokenizer is not a VQModel.
        """
        facts = {"class_names": self.class_names, "label_dropout": self.label_dropout}
        return export_aim(self.aim, directory, tokenizer=self.tokenizer, **facts)

    def __repr__(self) -> str:
        config, (rows, columns) = self.aim.config, self.tokenizer.grid
        size = f"d_model={config.d_model}, n_layer={config.n_layer}, num_classes={config.num_classes}"
        return f"{type(self).__name__}({size}, grid={rows}x{columns}, device={self.aim.lm_head.weight.device})"

    def grid(self, images: Tensor, columns: int = 8) -> Image.Image:
        """Arrange uint8 images (B, 3, H, W) in one PIL image, row by row; small images are enlarged."""
        shape, dtype = getattr(images, "shape", None), getattr(images, "dtype", type(images).__name__)
        if dtype != torch.uint8 or len(shape) != 4 or not len(images) or shape[1] != 3:
            raise UserError(f"images are {shape and tuple(shape)} of {dtype}; give a tensor uint8 (B, 3, H, W)")
        pixels_CHW = labelled_grid(images, max(1, min(columns, len(images))), [])
        return Image.fromarray(pixels_CHW.permute(1, 2, 0).numpy())

    def to(self, device) -> "AiMPipeline":
        """Move both networks to a device.

        Raises:
            UserError: there is no such device.
        """
        try:
            torch.empty(0).to(device)  # also a dtype
        except (RuntimeError, AssertionError) as error:
            raise UserError(f"device is {str(device)!r} ({first_line(error)}); use cpu, cuda or cuda:N") from None
        self.aim.to(device)
        self.tokenizer.to(device)
        return self

    def resolve(self, sampling: SamplingOptions) -> SamplingOptions:
        """Return the options without `auto`, for this network and device; a block size of `auto` is chosen once.

        Args:
            sampling: as configured.

        Raises:
            UserError: not even one image fits into the GPU's free memory, TF32 without a GPU, the fast decoder where
                it cannot be used, or guidance where it was not trained.
        """
        dropout = None if self.allow_untrained_guidance else self.label_dropout
        check_guidance(sampling, dropout, self.aim.config.num_tokens)
        sampling = resolve_pixels(sampling, self.aim.lm_head.weight.device)
        pixels = self._pixel_decoder(sampling)
        if sampling.batch_size != "auto":
            return resolve(sampling, self.aim)
        # Chosen once per device and memory demand: free memory differs from call to call, results must not.
        key = sampling.decoder, sampling.precision, sampling.cfg_scale != 1, sampling.pixel_precision
        key += (self.aim.lm_head.weight.device,)
        if key not in self._auto:
            self._auto[key] = resolve(sampling, self.aim, pixels.image_bytes).batch_size
        return resolve(replace(sampling, batch_size=self._auto[key]), self.aim)

    @with_sampling_options
    def batches(
        self,
        labels,
        *,
        batch_size: int | Literal["auto"] = "auto",
        indices=None,
        on_step: Callable[[int, Tensor], None] | None = None,
        allow_null_class: bool = False,
        **options,
    ) -> Iterator[Tensor]:
        """Yield the images of `generate` as uint8 batches (b, 3, H, W) on the network's device.

        A fixed batch_size is the size of every block: short ones are filled up, so that the same seed, index and
        batch_size give the same image in a set of any size. On a GPU a batch is decoded to pixels while the next one
        is sampled, and is yielded after that.

        Args:
            labels: class indices or names, a list or an int64 tensor (B,).
            batch_size: images sampled at a time; auto chooses by device and memory, at most the number of labels.
            indices: number of each image, default 0 to B - 1.
            on_step: called after each step with (step, codes so far (b, step + 1)) of the batch's images.
            allow_null_class: accept the label num_classes, which stands for no class.
            **options: other fields of `aim_lightning.sampling.SamplingOptions`: cfg_scale, temperature, top_k, seed, …

        Raises:
            UserError: no labels, labels or indices of another type, unknown classes, or as
                `aim_lightning.sampling.generate`.
        """
        labels_B = self._label_tensor(labels, allow_null_class)
        indices_B = torch.arange(len(labels_B)) if indices is None else torch.as_tensor(indices)
        if indices_B.shape != labels_B.shape or indices_B.is_floating_point():
            raise UserError(f"indices are {tuple(indices_B.shape)} of {indices_B.dtype}; give one integer per label")
        sampling = self.resolve(SamplingOptions.named(batch_size=batch_size, **options))
        if batch_size == "auto":
            sampling = replace(sampling, batch_size=min(sampling.batch_size, len(labels_B)))
        # On a GPU one batch waits: its pixels are computed while the next one is sampled.
        pixels = self._pixel_decoder(sampling)
        waiting: deque[Pixels] = deque()
        for part in torch.arange(len(labels_B)).split(sampling.batch_size):
            waiting.append(self._start_block(labels_B[part], indices_B[part], sampling, pixels, on_step))
            if len(waiting) > pixels.behind:
                yield waiting.popleft().images()
        while waiting:
            yield waiting.popleft().images()

    def generate(self, labels, **options) -> Tensor:
        """Generate one image per label.

        Args:
            labels: class indices or names, a list or an int64 tensor (B,).
            **options: as `batches`, with the same defaults.

        Returns:
            uint8 (B, 3, H, W) on the CPU. In float32 the codes of an image depend on (seed, index, label) only. Pixels
            are also bit-identical with the same batch_size; with another one they may differ by one grey level.

        Raises:
            UserError: as `batches`.
        """
        return torch.cat([batch.cpu() for batch in self.batches(labels, **options)])

    generate.__signature__ = signature(batches).replace(return_annotation=Tensor)  # for help and completion

    def preview(self, show: Callable[[Tensor], None], every: int | None = None) -> Callable[[int, Tensor], None]:
        """Return an `on_step` that shows images in the making: ``generate([7], on_step=pipeline.preview(show))``.

        Args:
            show: called with uint8 images (b, 3, H, W) on the device, of one batch; missing codes are grey.
            every: codes between two calls, by default a row of the grid; the last code always causes one.
        """
        rows, columns = self.tokenizer.grid

        @torch.no_grad()
        def on_step(step: int, codes_BT: Tensor) -> None:
            count = step + 1
            if count % (every or columns) and count < rows * columns:
                return
            # Missing codes are decoded as code 0 and covered: only the pixels next to them depend on that choice.
            images_BCHW = to_uint8(self.tokenizer.decode(F.pad(codes_BT, (0, rows * columns - count))))
            done = (torch.arange(rows * columns, device=codes_BT.device) < count).view(1, 1, rows, columns)
            visible = F.interpolate(done.float(), images_BCHW.shape[-2:]).bool()
            show(torch.where(visible, images_BCHW, torch.full_like(images_BCHW, GREY)))

        return on_step

    def _label_tensor(self, labels: Any, allow_null_class: bool) -> Tensor:
        # Tensors and arrays become lists, and those without dimensions become numbers.
        labels = labels.tolist() if hasattr(labels, "tolist") else labels
        if isinstance(labels, str) or not isinstance(labels, Iterable):
            raise UserError(f"labels is {labels!r}; give a list, such as [7]")
        labels_B = [self._label(label, allow_null_class) for label in labels]
        if not labels_B:
            raise UserError("labels is empty; give at least one")
        return torch.tensor(labels_B)

    def _label(self, label: Any, allow_null_class: bool) -> int:
        if isinstance(label, str):
            if (count := self.class_names.count(label)) == 1:
                return self.class_names.index(label)
            if count:  # ImageNet has two cranes
                raise UserError(f"labels: {count} classes are called {label!r}; give the number of the class")
            close = difflib.get_close_matches(label, self.class_names, n=1)
            hint = f"did you mean {close[0]!r}?" if close else "see class_names"
            raise UserError(f"labels: there is no class {label!r}; {hint}")
        label = label.tolist() if hasattr(label, "tolist") else label  # every tensor has __index__, floats too
        if isinstance(label, bool) or not hasattr(label, "__index__"):
            raise UserError(f"labels: {label!r} is no label; give whole numbers or class names")
        most = self.aim.null_class if allow_null_class else self.aim.null_class - 1
        if not 0 <= label <= most:
            hint = "" if allow_null_class else f"; the null class {most + 1} needs allow_null_class=True"
            raise UserError(f"labels: {label} is not one of 0 to {most}{hint}")
        return int(label)

    def _start_block(
        self, labels_b: Tensor, indices_b: Tensor, sampling: SamplingOptions, pixels: PixelDecoder, on_step
    ) -> Pixels:
        """Sample one block, filled up to its size by repeating its images, and start to decode it."""
        # A fixed block size keeps matrix shapes, and with them rounding, independent of the size of the set.
        count, rows = len(labels_b), torch.arange(sampling.batch_size) % len(labels_b)
        report = on_step and (lambda step, codes: on_step(step, codes[:count]))
        try:
            options = {"on_step": report, "pixel_bytes": pixels.image_bytes(), **sampling.code_options()}
            codes_BL = generate(self.aim, labels_b[rows], indices_B=indices_b[rows], **options)
            return pixels.start(codes_BL, count)
        except torch.OutOfMemoryError:
            pass  # the failed attempt's tensors are free only after this block
        raise out_of_memory(self.aim, sampling.batch_size, image_bytes(self.aim, sampling) + pixels.image_bytes())

    def _pixel_decoder(self, sampling: SamplingOptions) -> PixelDecoder:
        options = self.aim.lm_head.weight.device, sampling.pixel_precision
        version = weights_version(self.tokenizer)
        if (version, options) not in self._pixels:
            # Decoders with other weights are released.
            self._pixels = {key: decoder for key, decoder in self._pixels.items() if key[0] == version}
            self._pixels[version, options] = PixelDecoder(self.tokenizer, *options)
        return self._pixels[version, options]


def check_guidance(sampling: SamplingOptions, label_dropout: float | None, num_tokens: int) -> None:
    """Check that guidance uses only classes that the network was trained on.

    Args:
        sampling: options with the guidance scale.
        label_dropout: of the training; None = not recorded, or not to be checked.
        num_tokens: codes per image, over which the scale may vary.

    Raises:
        UserError: the null class (label_dropout 0) or all other classes (1) are untrained, and guidance is on.
    """
    if label_dropout in (0, 1) and sampling.is_guided(num_tokens):
        untrained = "null class" if label_dropout == 0 else "classes"
        trained = f"the network was trained with label_dropout {label_dropout:g}: its {untrained} cannot guide"
        hint = "set it to 1 (or allow_untrained_guidance)"
        raise UserError(f"sampling.cfg_scale is {sampling.cfg_scale}, but {trained}; {hint}")
