"""Read weights of any source into our networks, and write them in the published layout."""

from aim_lightning.weights.load import import_aim, import_vq
from aim_lightning.weights.save import export_aim, export_vq
from aim_lightning.weights.source import Source, read_source

__all__ = ["Source", "export_aim", "export_vq", "import_aim", "import_vq", "read_source"]
