"""Render experiments/README.md: recorded results next to those that papers report."""

from dataclasses import fields
from pathlib import Path
from typing import Any

from aim_lightning.config.yaml import parse
from aim_lightning.evaluation.score_record import chosen_classes, describe_reference, plain_metrics, read_record
from aim_lightning.sampling.filters import Filters
from aim_lightning.utils.table import MISSING, markdown

SWEEP_FILES = ("results.csv", "metrics.png", "protocol.json")
PAPER = {"FID": "fid", "IS": "is", "precision": "precision", "recall": "recall"}  # column -> metric
OUR_METRICS = ("fid", "sfid", "is", "precision", "recall", "kid", "mind_inception")


def paper_results() -> dict[str, list[dict[str, Any]]]:
    """Return the rows of the paper's table: `aim`, and `others` that it quotes."""
    return parse(Path(__file__).with_name("paper_results.yaml").read_text(encoding="utf-8"))


def render(
    records: dict[str, dict[str, Any]],
    sweeps: dict[str, dict[str, Any]],
    suites: dict[str, tuple[str, list[str]]] | None = None,
) -> str:
    """Return the text of the file.

    Args:
        records: by name.
        sweeps: protocols by name.
        suites: description, and the names of recorded results, by name.
    """
    page, papers = Path(__file__).with_name("results_page.md").read_text(encoding="utf-8"), paper_results()
    rows = [[row["model"], row["parameters"], *_paper_cells(row)] for row in papers["aim"] + papers["others"]]
    lists = [_results(records), *(["## Sweeps\n", *(_sweep(*item) for item in sweeps.items()), ""] if sweeps else [])]
    lists += ["## Suites\n", *(_suite(*item) for item in suites.items()), ""] if suites else []
    return page.format(results="\n".join(lists), paper=markdown(("model", "parameters", *PAPER), rows))


def read_records(directory: str | Path) -> dict[str, dict[str, Any]]:
    """Return the records of a directory by file name, in order.

    Raises:
        UserError: a file that is no record.
    """
    return {path.stem: read_record(path) for path in sorted(Path(directory).glob("*.json"))}


def read_suites(directory: str | Path) -> dict[str, tuple[str, list[str]]]:
    """Return the first comment of each suite's file, and the names of its recorded results, by name in order."""
    files = sorted(Path(directory).glob("*.yaml"))
    first = {file: file.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ") for file in files}
    return {file.stem: (first[file], sorted(path.name for path in file.with_suffix("").glob("*"))) for file in files}


def compare_with_paper(record: dict[str, Any], row: dict[str, Any]) -> str:
    """Return a table of two rows: the record's values and the paper's."""
    values = plain_metrics(record)
    cells = [number(values.get(metric)) for metric in PAPER.values()]
    rows = [[f"{row['model']}, here", *cells], [f"{row['model']}, paper", *_paper_cells(row)]]
    return markdown(("", *PAPER), rows)


def _results(records: dict[str, dict[str, Any]]) -> str:
    if not records:
        return "Nothing is recorded yet.\n"
    inception = {name: record for name, record in records.items() if "fid" in plain_metrics(record)}
    others = {name: record for name, record in records.items() if name not in inception}
    parts = [_table(inception, OUR_METRICS)] if inception else ["No FID is recorded yet.\n"]
    if others:
        names = dict.fromkeys(name for record in others.values() for name in plain_metrics(record))
        parts += ["Stand-ins (other feature networks; they compare with each other alone):\n"]
        parts += [_table(others, tuple(name for name in names if not name.endswith("_std")))]
    return "\n".join([*parts, "Protocols:\n", *(_protocol(*item) for item in records.items()), ""])


def _table(records: dict[str, dict[str, Any]], metrics: tuple[str, ...]) -> str:
    head = ("record", "data", "reference", "images", *metrics, "guidance", "seeds", "hardware", "commit")
    return markdown(head, [_row(name, record, metrics) for name, record in records.items()])


def _row(name: str, record: dict[str, Any], metrics: tuple[str, ...]) -> list[str]:
    values, spread = plain_metrics(record), plain_metrics({**record, "metrics": record.get("std") or {}})
    seeds, chosen = record.get("seeds") or [], chosen_classes(record["protocol"])
    return [
        name,
        record["data"].get("pictures") or record["model"].get("name") or MISSING,
        record["protocol"]["reference"]["name"],
        f"{record['num_images']:,}" + ("" if chosen is None else f" of {len(chosen)} classes"),
        *(number(values.get(metric), spread.get(metric) if len(seeds) > 1 else None) for metric in metrics),
        guidance(record["protocol"].get("sampling") or {}),
        ", ".join(map(str, seeds)) or MISSING,
        record["hardware"],
        record["commit"],
    ]


def guidance(sampling: dict[str, Any]) -> str:
    """Return scale, schedule and filters of sampling options, a dash without options."""
    if not sampling:
        return MISSING
    schedule = sampling.get("cfg_schedule", "constant")
    filters = {field.name: field.default for field in fields(Filters)}
    more = [f"{name} {sampling[name]}" for name, default in filters.items() if sampling.get(name, default) != default]
    return ", ".join([f"{sampling['cfg_scale']:g}" + ("" if schedule == "constant" else f" {schedule}"), *more])


def number(value: float | None, spread: float | None = None) -> str:
    """Return a value with its deviation, a dash for None."""
    if value is None:
        return MISSING
    if abs(value) >= 1e6:
        return f"{value:.3g}"
    digits = 4 if abs(value) < 1 else 2
    # `z`: a small negative distance is printed as 0.0000, not as -0.0000.
    return f"{value:z.{digits}f}" + (f" ± {spread:.{digits}f}" if spread is not None else "")


def _protocol(name: str, record: dict[str, Any]) -> str:
    features = record["protocol"]["features"]
    return (
        f"- **{name}**: {_model(record['model'])}; reference: {describe_reference(record['protocol']['reference'])}; "
        f"features: {features['network']} ({features['weights_sha256'][:12]}…), {features['resizing']}; "
        f"whole protocol: `results/{name}.json`"
    )


def _sweep(name: str, sweep: dict[str, Any]) -> str:
    varied = "; ".join(f"{option} {', '.join(values)}" for option, values in sweep["varied"].items())
    files = ", ".join(f"[{file}](sweeps/{name}/{file})" for file in SWEEP_FILES)
    return (
        f"- **{name}**: {_model(sweep['model'])}, {sweep['num_images']:,} images per point; {varied}; reference: "
        f"{describe_reference(sweep['protocol']['reference'])}; {', '.join(sweep['hardware'])}, commit "
        f"{', '.join(sweep['commit'])}: {files}"
    )


def _suite(name: str, suite: tuple[str, list[str]]) -> str:
    description, files = suite
    results = ", ".join(f"[{file}](suites/{name}/{file})" for file in files) or "not run yet"
    charts = "".join(f"\n\n  ![{file}](suites/{name}/{file})" for file in files if file.endswith(".png"))
    return f"- **{name}**: {description} ([suites/{name}.yaml](suites/{name}.yaml)): {results}{charts}"


def _model(model: dict[str, Any]) -> str:
    step = f", step {model['step']:,} ({model['weights']})" if "step" in model else ""
    return f"{model.get('kind')} {model.get('experiment') or model.get('name') or ''}{step}"


def _paper_cells(row: dict[str, Any]) -> list[str]:
    return [str(row.get(metric, MISSING)) for metric in PAPER.values()]
