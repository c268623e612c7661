"""`model.init_from`: a new run starts from other weights than random ones."""

from lightning.pytorch import LightningModule

from aim_lightning.models import AiM
from aim_lightning.models.aim.transfer import adapt_weights
from aim_lightning.models.vq.model import USAGE_RECORD
from aim_lightning.runs.checkpoint import load_weights
from aim_lightning.utils.process import say
from aim_lightning.weights import read_source
from aim_lightning.weights.load import aim_weights, vq_weights


def start_from(module: LightningModule, source: str) -> None:
    """Load `source` into the module's network and print what had to be replaced (AiM's classes and positions).

    Raises:
        UserError: no such source, or weights that do not fit.
    """
    found, network = read_source(source), module.network
    if isinstance(network, AiM):
        weights, notes = adapt_weights(network, aim_weights(found))
    else:
        record = network.state_dict()[USAGE_RECORD]  # a new run has used no codes yet
        weights, notes = {**vq_weights(found, network.config), USAGE_RECORD: record}, []
    load_weights(network, weights, source)
    say(f"weights from {source}")
    for note in notes:
        say(f"  {note}")
