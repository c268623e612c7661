"""Names of metrics that say how many samples they were taken on: "fid_50k", "fd_effnet_lite0_2k_raw"."""


def count_suffix(count: int) -> str:
    """2000 -> "2k", 50000 -> "50k", 512 -> "512", 1500 -> "1500".

    Raises:
        ValueError: a count below 1.
    """
    if count < 1:
        raise ValueError(f"a metric needs at least one sample, not {count}")
    return str(count) if count % 1000 else f"{count // 1000}k"


def metric_name(base: str, count: int, raw: bool = False) -> str:
    """`base`_`count`, with "_raw" behind it for weights that are no moving average."""
    return f"{base}_{count_suffix(count)}" + ("_raw" if raw else "")
