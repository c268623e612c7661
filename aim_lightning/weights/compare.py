"""Whether a source holds the network that a configuration describes."""

from collections.abc import Collection
from dataclasses import asdict

from aim_lightning.models import AiMConfig, VQConfig
from aim_lightning.utils.errors import UserError
from aim_lightning.weights.configure import known_aim, known_vq
from aim_lightning.weights.source import Source

# Any value of these goes with the same weights: the configuration decides.
FREE = {"token_dropout", "mixer_dropout", "mlp_dropout", "chunk_size", "dropout", "image_size", "usage_window"}


def check_same(source: Source, wanted: AiMConfig | VQConfig, may_differ: Collection[str] = ()) -> None:
    """Compare all that the source tells of its network.

    Args:
        source: what was read.
        wanted: the configuration's network.
        may_differ: further options that may be others there.

    Raises:
        UserError: it holds no such network, or another one.
    """
    known = known_aim(source) if isinstance(wanted, AiMConfig) else known_vq(source)
    free = FREE | set(may_differ) | (set() if known.get("adaln") == "group" else {"num_groups"})
    here = asdict(wanted)
    changes = [
        f"{key} is {value} there and {here[key]} here"
        for key, value in known.items()
        if key not in free and value != here[key]
    ]
    if changes:
        raise UserError(f"{source.name} is another network than model.network: {'; '.join(changes)}")
