"""Print the table at the end of `make demo` from the results.json of both stages, with the target of each figure.

python experiments/demo_table.py [--runs_root runs] [--num 2000]
"""

import argparse
import math
import sys
from pathlib import Path

from omegaconf import OmegaConf

from aim_lightning.metrics import metric_name
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import read_json

PSNR, BITS, AGREEMENT = 22, 4, 0.85


def table(runs: Path, num: int) -> list[str]:
    """Return the lines of the table.

    Args:
        runs: directory of all runs.
        num: number of samples, and of images behind both baselines, that the metrics must have.

    Raises:
        UserError: a run, or a metric of that number, is missing.
    """
    aim_run = runs / "demo_aim/main"
    aim, tokenizer = _metrics(aim_run), _metrics(runs / "demo_tokenizer/main")
    lines = ["Fashion-MNIST mini, 32x32, 8x8 codes", _row("", "samples", "untrained model", "real images")]
    for base, digits in (("fd_effnet_lite0", 1), ("class_agreement", 3)):
        name = metric_name(base, num)
        lines.append(_row(name, *(f"{aim[name + suffix]:.{digits}f}" for suffix in ("", "_untrained", "_real"))))
    share = aim[metric_name("class_agreement", num)] / aim[metric_name("class_agreement", num) + "_real"]
    codebook = OmegaConf.load(aim_run / "config.yaml").model.init_args.network.vocab_size
    lines += [
        f"tokenizer PSNR            {tokenizer['val/psnr']:.2f} dB  (to reach: at least {PSNR})",
        f"codebook usage            {tokenizer['val/codebook_usage']:.0%} of {codebook}",
        f"validation loss           {aim['val/bits_per_code']:.2f} bits per code of {math.log2(codebook):.0f}"
        f"  (to reach: at most {BITS})",
        f"agreement against real    {share:.2f}  (to reach: at least {AGREEMENT})",
    ]
    return [*lines, f"images                    {aim_run / 'samples/grid.png'}"]


def _metrics(run: Path) -> dict[str, float]:
    return read_json(run / "results.json", "results")["metrics"]


def _row(name: str, *values: str) -> str:
    return f"{name:26s}" + "".join(f"{value:>17s}" for value in values)


def main() -> None:
    """Print the table of the demo's runs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs_root", type=Path, default=Path("runs"), help="directory of all runs (default: runs)")
    parser.add_argument("--num", type=int, default=2000, help="samples behind each metric (default: 2000)")
    options = parser.parse_args()
    try:
        print("\n".join(table(options.runs_root, options.num)))
    except KeyError as error:
        sys.exit(f"error: the results of the demo have no {error.args[0]}; run make validate EXP=demo_aim")
    except FileNotFoundError as error:
        sys.exit(f"error: {error.filename} does not exist; run make demo")
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
