"""Metrics of generated images on the features of frozen networks, and their names, such as "fid_50k"."""


def count_suffix(count: int) -> str:
    """Return the number of samples as text: 2000 as "2k", 50000 as "50k", 512 as "512", 1500 as "1500"."""
    return str(count) if count % 1000 else f"{count // 1000}k"


def metric_name(base: str, count: int, raw: bool = False) -> str:
    """Return a metric's name with its number of samples, such as "fd_effnet_lite0_2k_raw".

    Args:
        base: name of the metric alone.
        count: number of samples.
        raw: append "_raw", for weights that are no moving average.
    """
    return f"{base}_{count_suffix(count)}" + ("_raw" if raw else "")
