"""The table at the end of `make demo`, from the results.json of both stages."""

import math
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import read_json


def main() -> None:
    runs = Path("runs")
    tokenizer = read_json(runs / "demo_tokenizer/main/results.json", "results")["metrics"]
    results = read_json(runs / "demo_aim/main/results.json", "results")
    aim, codebook = results["metrics"], 256
    table = Table(title="Fashion-MNIST mini, 32x32, 8x8 codes")
    for column in ("", "samples", "untrained model", "real pictures"):
        table.add_column(column, justify="left" if not column else "right")
    for name, digits in (("fd_effnet_lite0_2k", 1), ("class_agreement_2k", 3)):
        table.add_row(name, *(f"{aim[name + suffix]:.{digits}f}" for suffix in ("", "_untrained", "_real")))
    console = Console()
    console.print(table)
    console.print(f"tokenizer PSNR            {tokenizer['val/psnr']:.2f} dB")
    console.print(f"codebook usage            {tokenizer['val/codebook_usage']:.0%} of {codebook}")
    bits = aim["val/bits_per_code"]
    console.print(
        f"validation loss           {bits:.2f} bits per code (log2 of the codebook: {math.log2(codebook):.0f})"
    )
    share = aim["class_agreement_2k"] / aim["class_agreement_2k_real"]
    console.print(f"agreement against real    {share:.2f}")
    console.print(f"pictures                  {runs / 'demo_aim/main/samples/grid.png'}")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
