"""Sampler settings as one value, for configuration files and records."""

from dataclasses import asdict, dataclass
from math import inf
from numbers import Real
from typing import Literal

from aim_lightning.sampling.filters import COLDEST
from aim_lightning.sampling.guidance import check_guidance
from aim_lightning.utils.errors import UserError

# Not about the codes of a batch, but about batches and pixels.
OF_THE_PIPELINE = ("batch_size", "pixel_precision", "pixel_compile")
PIXEL_PRECISIONS = ("float32", "tf32", "bfloat16")


@dataclass(frozen=True)
class SamplingOptions:
    """How images are drawn; see `aim_lightning.sampling.generate`.

    Args:
        cfg_scale: guidance; 1 = none.
        temperature: 1e-6 or more; top_k 1 is argmax.
        top_k: codes kept a step; 0 = all, 1 = argmax.
        top_p: probability kept a step; 1 = all.
        seed: of the images' random streams.
        batch_size: images drawn at a time on one device, always so many: the last ones are filled up. ``auto`` is a
            power of two, 256 at most, that fits into a GPU's free memory, and 64 on a CPU.
        position_offset: 1 = positions of the published decoder.
        cfg_schedule: guidance over the sequence (`aim_lightning.sampling.guidance`).
        cfg_power: exponent of the schedule ``power``.
        cfg_interval: begin and end of the schedule ``interval``, shares of the sequence, 0 to 1.
        decoder: ``plain``, or ``fast`` (docs/performance.md).
        precision: of the fast decoder: ``float32``, ``bfloat16``, or ``auto`` (bfloat16 on a GPU).
        pixel_precision: in which the tokenizer turns codes into pixels; ``tf32`` needs an NVIDIA GPU.
        pixel_compile: fuse the tokenizer's decoder with torch.compile, a minute at the start.

    Raises:
        UserError: a value of another type or out of range.
    """

    cfg_scale: float = 1.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    batch_size: int | Literal["auto"] = 256
    position_offset: int = 0
    # Written out: the early check of configurations follows no aliases.
    cfg_schedule: Literal["constant", "linear", "cosine", "power", "interval"] = "constant"
    cfg_power: float = 1.0
    cfg_interval: tuple[float, float] = (0.0, 1.0)
    decoder: Literal["plain", "fast"] = "plain"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    pixel_precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    pixel_compile: bool = False

    def __post_init__(self) -> None:
        numbers = {"cfg_scale": self.cfg_scale, "temperature": self.temperature, "top_p": self.top_p}
        numbers |= {"cfg_power": self.cfg_power}
        interval = self.cfg_interval if isinstance(self.cfg_interval, list | tuple) else [self.cfg_interval]
        numbers |= {f"cfg_interval[{i}]": value for i, value in enumerate(interval)}
        whole = {name: getattr(self, name) for name in ("top_k", "seed", "position_offset")}
        whole |= {} if self.batch_size == "auto" else {"batch_size": self.batch_size}
        for values, kind, what in ((numbers, Real, "number"), (whole, int, "whole number")):
            for name, value in values.items():
                if not isinstance(value, kind) or isinstance(value, bool):
                    raise UserError(f"sampling: {name} is {value!r}; it must be a {what}")
        check_guidance(self.cfg_scale, self.cfg_schedule, self.cfg_power, interval)
        for name, fits, limits in (
            ("temperature", COLDEST <= self.temperature < inf, f"{COLDEST} or more (top_k 1 is argmax)"),
            ("cfg_scale", self.cfg_scale < inf, "finite"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("top_k", self.top_k >= 0, "0 (all codes) or more"),
            ("batch_size", self.batch_size == "auto" or self.batch_size >= 1, "auto, or at least 1"),
            ("position_offset", self.position_offset in (0, 1), "0, or 1 for the published decoder"),
            ("decoder", self.decoder in ("plain", "fast"), "plain or fast"),
            ("precision", self.precision in ("auto", "float32", "bfloat16"), "auto, float32 or bfloat16"),
            ("pixel_precision", self.pixel_precision in PIXEL_PRECISIONS, "float32, tf32 or bfloat16"),
        ):
            if not fits:
                raise UserError(f"sampling: {name} is {getattr(self, name)}; it must be {limits}")
        for name in ("cfg_scale", "temperature", "top_p", "cfg_power"):  # 2 and 2.0 are one value, with one name
            object.__setattr__(self, name, float(getattr(self, name)))
        object.__setattr__(self, "cfg_interval", tuple(map(float, interval)))

    def options(self) -> dict:
        """Keyword arguments of `AiMPipeline.generate`."""
        return asdict(self)

    def code_options(self) -> dict:
        """Keyword arguments of `generate`: those that decide which codes are drawn."""
        return {name: value for name, value in asdict(self).items() if name not in OF_THE_PIPELINE}
