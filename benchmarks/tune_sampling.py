"""Finds the shapes of the fast decoder's kernels: one change after the other, by the time of whole sequences.

python benchmarks/tune_sampling.py [--models AiM-B,AiM-L] [--batches 16,16] [--seconds 300] [--out shapes.json]
Each change (benchmarks/trials.py) must first draw what the present shapes draw; then both are timed by turns. --out,
by default aim_lightning/sampling/fast/shapes.json, is written after every gain: a run that is cut off loses nothing.
Needs a GPU; first the kernels are compiled in many processes, since that takes most of the time.
"""

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from unittest import mock

import torch
from sampling import GOALS, OPTIONS, network, timed
from torch import Tensor
from trials import Change, changes

from aim_lightning.models import AiM, AiMConfig
from aim_lightning.sampling.fast import FastDecoder, shapes
from aim_lightning.sampling.fast.shapes import Shapes, shapes_for
from aim_lightning.utils.files import atomic_path

PATH = Path(shapes.__file__).with_name("shapes.json")
GAIN = 0.995  # what counts as better
NEAR = 3e-2  # of logits from those of the present shapes, norm over norm, after a whole sequence
Case = tuple[str, int]
# So hot that every code is equally likely and rounding draws no other: all shapes have the same past.
HOT = {"temperature": 1e9, "top_k": 0, "top_p": 1.0}


@dataclass
class Drawn:
    """What shapes draw: codes under the benchmark's options; codes and last logits when hot."""

    codes_BT: Tensor
    hot_BT: Tensor
    logits_MV: Tensor


class Sequence:
    """A decoder in given shapes, ready to draw."""

    def __init__(self, model: AiM, batch: int, wanted: Shapes, graph: bool = True) -> None:
        self.model, self.device = model, model.lm_head.weight.device
        with mock.patch.object(shapes, "table", lambda: {(model.config.d_model, 2 * batch): wanted}):
            self.decoder = FastDecoder(model, batch, True, torch.bfloat16, graph)
        generator = torch.Generator().manual_seed(0)
        self.uniform = torch.rand(batch, model.config.num_tokens, generator=generator, dtype=torch.float64)
        self.uniform, self.labels = self.uniform.to(self.device), torch.arange(batch, device=self.device)
        self.labels %= model.config.num_classes

    def draw(self, **options) -> Tensor:
        scales = [OPTIONS["cfg_scale"]] * self.model.config.num_tokens
        options = {"temperature": 1.0, "top_k": OPTIONS["top_k"], "top_p": OPTIONS["top_p"], **options}
        return self.decoder.run(self.model, self.labels, self.uniform, scales=scales, **options)

    def drawn(self) -> Drawn:
        hot = self.draw(**HOT)
        logits = self.decoder.buffers.logits_MV.clone()
        return Drawn(self.draw(), hot, logits)

    def seconds(self) -> float:
        return timed(self.draw, self.device, 1, warm_up=0)[0]


def fault(found: Drawn, wanted: Drawn, drawing_alone: bool) -> str | None:
    """Why `found` is not what the present shapes draw; None if it is, up to rounding.

    drawing_alone: nothing but the drawing kernel differs, so that logits are the same.
    """
    if not torch.equal(found.hot_BT, wanted.hot_BT):
        return "other codes although all are equally likely"
    distance = float((found.logits_MV - wanted.logits_MV).norm() / wanted.logits_MV.norm())
    if not distance <= NEAR:
        return f"logits are {distance:.1e} apart"
    other = int((found.codes_BT[:, 0] != wanted.codes_BT[:, 0]).sum())
    if other > 2 + len(found.codes_BT) // 2:  # a code is drawn among hundreds: rounding moves many a draw to the next
        return f"{other} images begin with another code"
    same = float((found.codes_BT == wanted.codes_BT).float().mean())
    return f"{1 - same:.0%} of the codes are others" if drawing_alone and same < 0.9 else None


def compare(best: Sequence, other: Sequence, repeats: int) -> tuple[float, float]:
    """Median seconds of both, measured by turns."""
    pairs = [(best.seconds(), other.seconds()) for _ in range(repeats + 1)][1:]
    return tuple(map(statistics.median, zip(*pairs, strict=True)))


def tune(
    model: AiM,
    batch: int,
    found: Shapes,
    tries: Iterable[Change],
    until: float,
    keep: Callable[[Shapes], None],
    repeats: int = 3,
) -> Shapes:
    """The best shapes that the changes lead to, each `keep`t when it is found."""
    best = Sequence(model, batch, found)
    wanted = best.drawn()
    for change in tries:
        if time.monotonic() > until:
            print("  time is up", flush=True)
            break
        new = replace(found, **change)
        if new == found:
            continue
        try:
            other = Sequence(model, batch, new)
            why = fault(other.drawn(), wanted, set(change) == {"choose_warps"})
            if why:
                print(f"  REFUSED, {why}: {change}", flush=True)
                continue
            before, after = compare(best, other, repeats)
        except Exception as error:  # too much shared memory, say: another change will do
            print(f"  {type(error).__name__} {str(error).partition(chr(10))[0][:100]}: {change}", flush=True)
            continue
        gain = after < before * GAIN
        print(f"  {before:.4f} -> {after:.4f} s{' *' if gain else ''} {change}", flush=True)
        if gain:
            found, best = new, other
            keep(found)
    return found


def compile_one(case: Case, change: Change) -> str:
    """A short sequence of a shallow network of the same widths, for Triton's cache; what went wrong."""
    name, batch = case
    preset = AiMConfig.preset(name)
    try:
        with torch.device("cuda"):
            model = AiM(replace(preset, n_layer=max(2, preset.num_groups), num_tokens=16)).eval()
        found = replace(shapes_for(model.config, 2 * batch, torch.bfloat16), **change)
        Sequence(model, batch, found, graph=False).draw()
    except Exception as error:
        return f"  {case} {change}: {type(error).__name__}\n"
    return ""


def compile_all(cases: list[Case], workers: int, until: float) -> None:
    """In processes of their own, so many at a time."""
    jobs = [(case, change) for case in cases for change in ({}, *changes(*key(case)))]
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        results = [pool.apply_async(compile_one, job) for job in jobs]
        for result in results:
            try:
                print(result.get(max(0.0, until - time.monotonic())) or "", end="", flush=True)
            except multiprocessing.TimeoutError:
                print("compiling took too long; the rest is compiled as it is tried", flush=True)
                break
        pool.terminate()


def key(case: Case) -> tuple[int, int]:
    """Of a row of the table."""
    return AiMConfig.preset(case[0]).d_model, 2 * case[1]


def store(path: Path, place: tuple[int, int], found: Shapes) -> None:
    """Into the table, which is complete at any moment; a row is a line of it."""
    table = json.loads((path if path.exists() else PATH).read_text())
    row = {name: list(value.values()) if isinstance(value, dict) else value for name, value in asdict(found).items()}
    table["x".join(map(str, place))] = row
    lines = ",\n".join(f' "{name}": {json.dumps(value)}' for name, value in table.items())
    with atomic_path(path) as temporary:
        temporary.write_text("{\n" + lines + "\n}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", help="presets, with commas (default: those of the goals)")
    parser.add_argument("--batches", help="images, one for each model")
    parser.add_argument("--seconds", type=float, default=300, help="time for all of it")
    parser.add_argument("--compile", type=float, default=0.3, help="share of it that compiling may take")
    parser.add_argument("--repeats", type=int, default=3, help="sequences of both behind each median")
    parser.add_argument("--workers", type=int, default=12, help="processes that compile")
    parser.add_argument("--out", type=Path, default=PATH, help="table to write")
    options = parser.parse_args()
    begin, cases = time.monotonic(), list(GOALS)
    until = begin + options.seconds
    if bool(options.models) != bool(options.batches):
        parser.error("--models and --batches belong together")
    if options.models:
        cases = list(zip(options.models.split(","), map(int, options.batches.split(",")), strict=True))
    compile_all(cases, options.workers, begin + options.compile * options.seconds)
    print(f"compiled after {time.monotonic() - begin:.0f} s", flush=True)
    for done, case in enumerate(cases):
        now, model = time.monotonic(), network(case[0], torch.device("cuda"))
        share = now + max(0, until - now) / (len(cases) - done)
        found = shapes_for(model.config, 2 * case[1], torch.bfloat16)
        print(f"{case}: {found}", flush=True)
        keep = lambda best, case=case: store(options.out, key(case), best)  # noqa: E731
        tune(model, case[1], found, changes(*key(case)), share, keep, options.repeats)
    print(f"written to {options.out}; next: python benchmarks/sampling.py")


if __name__ == "__main__":
    main()
