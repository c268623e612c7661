"""Test a random sample of the mutants of some files with mutmut: `make mutation PATHS=… SAMPLE=… SEED=…`."""

import argparse
import json
import random
import subprocess
import sys
from pathlib import Path

MUTANTS = Path("mutants")


def mutmut(*arguments: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run([Path(sys.executable).with_name("mutmut"), *arguments], check=True, **options)


def exit_codes(paths: list[Path]) -> dict[str, int | None]:
    """Return the exit code of pytest by mutant, None for one that was not tested."""
    codes = {}
    for file in sorted(MUTANTS.rglob("*.meta")):
        source = file.relative_to(MUTANTS).with_suffix("")
        if any(source.is_relative_to(path) for path in paths):
            codes |= json.loads(file.read_text())["exit_code_by_key"]
    return codes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("paths", nargs="*", type=Path, help="files and directories of only_mutate (default: all)")
    parser.add_argument("--sample", type=int, default=100, help="number of mutants")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    options = parser.parse_args()
    paths = options.paths or [Path("aim_lightning")]
    # Mutants are listed only after a run: the first one tests a single mutant.
    mutmut("run", "--max-children", "1", "aim_lightning.sampling.filters.x_guide__mutmut_1")
    names = sorted(exit_codes(paths))
    sample = random.Random(options.seed).sample(names, min(options.sample, len(names)))
    mutmut("run", "--max-children", "1", *sample)
    codes = exit_codes(paths)
    survivors = [name for name in sample if codes[name] in (0, 33)]  # 33: no test calls the function
    for name in survivors:
        mutmut("show", name)
    killed = len(sample) - len(survivors)
    print(f"{killed} of {len(sample)} mutants killed ({killed / len(sample):.0%}); {len(names)} mutants in these files")


if __name__ == "__main__":
    main()
