"""`model.init_from`: a new run starts from other weights than random ones."""

from lightning.pytorch import LightningModule

from aim_lightning.checkpoint.io import load_weights
from aim_lightning.data.tokens.format.manifest import TokenManifest
from aim_lightning.models import AutoregressiveNetwork
from aim_lightning.models.vq.model import USAGE_RECORD
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.logging import log
from aim_lightning.weights import Source, read_source
from aim_lightning.weights.infer_config import check_same
from aim_lightning.weights.load import CLASSES, adapt_weights, aim_weights, vq_weights

# The tables that follow these are made to fit.
REPLACED = ("num_classes", "num_tokens")


def start_from(module: LightningModule, source: str, manifest: TokenManifest | None = None) -> None:
    """Load `source` into the module's network and print what had to be replaced (tables of classes and positions).

    Args:
        module: with a network that nothing was trained in yet.
        source: see `aim_lightning.weights.read_source`.
        manifest: of the token shards that it will be trained on; None for a tokenizer.

    Raises:
        UserError: no such source, weights that do not fit, or a network of another tokenizer's codes.
    """
    weights_source, network = read_source(source), module.network
    check_same(weights_source, network.config, REPLACED)
    if isinstance(network, AutoregressiveNetwork):
        if manifest is not None:
            _check_tokenizer(weights_source, manifest)
        weights, notes = adapt_weights(network, aim_weights(weights_source))
        notes += _renamed_classes(weights_source.class_names, manifest.class_names) if manifest else []
    else:
        record = network.state_dict()[USAGE_RECORD]  # a new run has used no codes yet
        weights, notes = {**vq_weights(weights_source, network.config), USAGE_RECORD: record}, []
    load_weights(network, weights, source)
    log("\n  ".join([f"weights from {source}", *notes]))


def _check_tokenizer(source: Source, manifest: TokenManifest) -> None:
    """Refuse weights trained on the codes of another tokenizer: no metric would show that the codes differ."""
    trained, stored = source.tokenizer_hash, manifest.tokenizer_hash
    if trained is not None and trained != stored:
        raise UserError(
            f"{source.name} was trained on the codes of another tokenizer (weights hash {trained[:12]}…) "
            f"than the one that wrote the token shards ({stored[:12]}…); "
            "tokenize the images with that one: tokenize --tokenizer SOURCE"
        )


def _renamed_classes(old: list[str] | None, new: list[str]) -> list[str]:
    """Return a line if as many classes have other names: their embeddings are kept label by label."""
    if old is None or len(old) != len(new) or old == new:
        return []
    label = next(i for i, pair in enumerate(zip(old, new, strict=True)) if pair[0] != pair[1])
    return [f"{CLASSES}: kept, though class {label} is {old[label]!r} there and {new[label]!r} here"]
