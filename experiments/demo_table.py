"""The table at the end of `make demo`, from the results.json of both stages.

python experiments/demo_table.py [--runs_root runs]; the target is next to each figure.
"""

import argparse
import math
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import read_json

PSNR, BITS, AGREEMENT = 22, 4, 0.85


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs_root", type=Path, default=Path("runs"), help="directory of all runs (default: runs)")
    runs = parser.parse_args().runs_root
    tokenizer, aim = (_metrics(runs / f"demo_{stage}/main/results.json") for stage in ("tokenizer", "aim"))
    console = Console()
    console.print(scores(aim))
    for line in figures(tokenizer, aim, codebook=_codebook(runs / "demo_aim/main/config.yaml")):
        console.print(line, highlight=False)
    console.print(f"{'images':26s}{runs / 'demo_aim/main/samples/grid.png'}")


def scores(aim: dict[str, float]) -> Table:
    """Print samples next to an untrained model and real images; the count in the names is that of the run."""
    table = Table(title="Fashion-MNIST mini, 32x32, 8x8 codes")
    for column in ("", "samples", "untrained model", "real images"):
        table.add_column(column, justify="left" if not column else "right")
    for prefix, digits in (("fd_effnet_lite0", 1), ("class_agreement", 3)):
        columns = [_find(aim, prefix, kind) for kind in ("", "_untrained", "_real")]
        table.add_row(columns[0][0], *(f"{value:.{digits}f}" for _, value in columns))
    return table


def figures(tokenizer: dict[str, float], aim: dict[str, float], codebook: int) -> list[str]:
    """Lines of name, value and what to reach."""
    bits = _value(aim, "val/bits_per_code")
    share = _find(aim, "class_agreement", "")[1] / _find(aim, "class_agreement", "_real")[1]
    rows = [
        ("tokenizer PSNR", f"{_value(tokenizer, 'val/psnr'):.2f} dB", f"at least {PSNR}"),
        ("codebook usage", f"{_value(tokenizer, 'val/codebook_usage'):.0%} of {codebook}", ""),
        ("validation loss", f"{bits:.2f} bits per code of {math.log2(codebook):.0f}", f"at most {BITS}"),
        ("agreement against real", f"{share:.2f}", f"at least {AGREEMENT}"),
    ]
    return [f"{name:26s}{value}{f'  (to reach: {goal})' if goal else ''}" for name, value, goal in rows]


def _metrics(path: Path) -> dict[str, float]:
    return read_json(path, "results")["metrics"]


def _codebook(path: Path) -> int:
    from omegaconf import OmegaConf

    if not path.is_file():
        raise UserError(f"{path} does not exist; run make demo")
    return int(OmegaConf.load(path).model.init_args.network.vocab_size)


def _find(metrics: dict[str, float], prefix: str, kind: str) -> tuple[str, float]:
    """The metric prefix_COUNT + kind, whatever its count."""
    for name, value in metrics.items():
        count = name.removeprefix(f"{prefix}_").removesuffix(kind)
        if name == f"{prefix}_{count}{kind}" and count.removesuffix("k").isdecimal():
            return name, value
    raise UserError(f"the results of demo_aim have no {prefix}{kind}; run make validate EXP=demo_aim")


def _value(metrics: dict[str, float], name: str) -> float:
    if name not in metrics:
        raise UserError(f"the results of the demo have no {name}; run make demo")
    return metrics[name]


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
