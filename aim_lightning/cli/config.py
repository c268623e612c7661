"""The configuration of one command, with typed access to the sections that several commands use."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from aim_lightning.cluster.options import ClusterOptions
from aim_lightning.config import ComposedConfig
from aim_lightning.runs.directory import RunDirectory

if TYPE_CHECKING:
    from aim_lightning.sampling import SamplingOptions


class Config(ComposedConfig):
    """Composed configuration with typed sections; `values` holds the plain mappings."""

    @property
    def run_directory(self) -> RunDirectory:
        """Return the run directory.

        Raises:
            UserError: `experiment` or `run` is not a plain directory name.
        """
        values = self.values
        return RunDirectory(str(values["experiment"]), str(values["run"]), Path(values["runs_root"]))

    @property
    def trainer(self) -> dict[str, Any]:
        """Return the options of the Trainer that the configuration sets."""
        return self.values["trainer"]

    @property
    def cluster(self) -> ClusterOptions:
        """Return the section `cluster`."""
        return ClusterOptions(**self.values["cluster"])

    @property
    def sampling(self) -> "SamplingOptions":
        """Return the section `sampling`."""
        from aim_lightning.sampling import SamplingOptions  # imports torch

        return SamplingOptions(**self.values["sampling"])

    def init_args(self, section: str) -> dict[str, Any]:
        """Return the arguments of a section's class; empty where the section is missing or null."""
        return (self.values.get(section) or {}).get("init_args") or {}

    def class_name(self, section: str) -> str:
        """Return the name of a section's class without its module; empty where the section is missing or null."""
        return (self.values.get(section) or {}).get("class_path", "").rpartition(".")[2]

    @property
    def is_tokenizer(self) -> bool:
        """Return True if the configuration trains a tokenizer."""
        return self.class_name("model") == "TokenizerModule"

    @property
    def reads_tokens(self) -> bool:
        """Return True if the data section reads token shards."""
        return self.class_name("data") == "TokenDataModule"
