"""What papers report on ImageNet-1k at 256x256 (AiM, arXiv 2408.12245, table 2): never our numbers."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PaperRow:
    """One row of a paper's table; None where it reports nothing.

    Args:
        model: name in the paper.
        parameters: as written there.
        fid: as reported, 50,000 samples.
        inception_score: as reported.
        precision: as reported.
        recall: as reported.
    """

    model: str
    parameters: str
    fid: float
    inception_score: float
    precision: float | None = None
    recall: float | None = None


AIM = (
    PaperRow("AiM-B", "148M", 3.52, 250.1, 0.83, 0.52),
    PaperRow("AiM-L", "350M", 2.83, 244.6, 0.82, 0.55),
    PaperRow("AiM-XL", "763M", 2.56, 257.2, 0.82, 0.57),
    PaperRow("AiM-1B", "1.3B", 2.21, 256.0, 0.82, 0.55),
)
OTHERS = (
    PaperRow("DiT-XL/2", "675M", 2.27, 278.2),
    PaperRow("VAR-d16", "310M", 3.30, 274.4),
    PaperRow("VAR-d20", "600M", 2.57, 302.6),
    PaperRow("VAR-d24", "1.0B", 2.09, 312.9),
    PaperRow("VAR-d30", "2.0B", 1.97, 334.7),
    PaperRow("LlamaGen-B", "111M", 5.46, 193.6),
    PaperRow("LlamaGen-L", "343M", 3.81, 248.3),
    PaperRow("LlamaGen-L at 384 px", "343M", 3.07, 256.1),
    PaperRow("LlamaGen-XL at 384 px", "775M", 2.62, 244.1),
    PaperRow("LlamaGen-XXL at 384 px", "1.4B", 2.34, 253.9),
    PaperRow("LlamaGen-3B at 384 px", "3B", 2.18, 263.3),
)


def paper_row(model: str) -> PaperRow | None:
    """AiM's row of that name."""
    return next((row for row in AIM if row.model.lower() == model.lower()), None)
