"""`model.init_from`: a new run starts from other weights than random ones."""

from lightning.pytorch import LightningModule

from aim_lightning.checkpoint.io import load_weights
from aim_lightning.data.tokens.format.manifest import TokenManifest
from aim_lightning.models import AiM
from aim_lightning.models.vq.model import USAGE_RECORD
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.logging import log
from aim_lightning.weights import Source, read_source
from aim_lightning.weights.infer_config import check_same
from aim_lightning.weights.load import CLASSES, adapt_weights, aim_weights, vq_weights

# The tables that follow these are made to fit.
REPLACED = ("num_classes", "num_tokens")


def start_from(module: LightningModule, source: str, manifest: TokenManifest | None = None) -> None:
    """Load `source` into the module's network and print what had to be replaced (AiM's classes and positions).

    Args:
        module: with a network that nothing was trained in yet.
        source: see `aim_lightning.weights.read_source`.
        manifest: of the token shards that it will be trained on; None for a tokenizer.

    Raises:
        UserError: no such source, weights that do not fit, or an AiM of another tokenizer's codes.
    """
    found, network = read_source(source), module.network
    check_same(found, network.config, REPLACED)
    if isinstance(network, AiM):
        if manifest is not None:
            _check_tokenizer(found, manifest)
        weights, notes = adapt_weights(network, aim_weights(found))
        notes += _other_classes(found.class_names, manifest.class_names if manifest else None)
    else:
        record = network.state_dict()[USAGE_RECORD]  # a new run has used no codes yet
        weights, notes = {**vq_weights(found, network.config), USAGE_RECORD: record}, []
    load_weights(network, weights, source)
    log(f"weights from {source}")
    for note in notes:
        log(f"  {note}")


def _check_tokenizer(found: Source, manifest: TokenManifest) -> None:
    """Refuse weights trained on the codes of another tokenizer: no metric would show that the codes differ."""
    theirs, ours = found.tokenizer_hash, manifest.tokenizer_hash
    if theirs is not None and theirs != ours:
        raise UserError(
            f"{found.name} was trained on the codes of another tokenizer (weights hash {theirs[:12]}…) "
            f"than the one that wrote the token shards ({ours[:12]}…); "
            "tokenize the images with that one: tokenize --tokenizer SOURCE"
        )


def _other_classes(theirs: list[str] | None, ours: list[str] | None) -> list[str]:
    """Return a line if as many classes have other names: their rows stay, label by label."""
    if theirs is None or ours is None or len(theirs) != len(ours) or theirs == ours:
        return []
    label = next(i for i, pair in enumerate(zip(theirs, ours, strict=True)) if pair[0] != pair[1])
    return [f"{CLASSES}: kept, though class {label} is {theirs[label]!r} there and {ours[label]!r} here"]
