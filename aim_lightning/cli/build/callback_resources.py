"""Networks that are not trained and values that callbacks ask for, each built once from one key."""

from typing import Any

from lightning.pytorch import Callback, LightningModule

from aim_lightning.cli.config import Config
from aim_lightning.data.stream_datamodule import StreamDataModule
from aim_lightning.models import AiM
from aim_lightning.pipeline import load_tokenizer
from aim_lightning.runs.directory import RunDirectory
from aim_lightning.utils.errors import UserError


class Frozen:
    """Fills in what a callback lists in its class attribute `needs`.

    Names: tokenizer, features, images, sampling, class_names, configuration, run_dir.
    """

    def __init__(self, built: Any, document: Config, data: StreamDataModule, directory: RunDirectory) -> None:
        self.built, self.document, self.data, self.directory = built, document, data, directory
        self._made: dict[str, Any] = {}

    def give(self, name: str, callback: Callback) -> None:
        """Set every needed attribute.

        Raises:
            UserError: the configuration does not have it.
        """
        for need in getattr(callback, "needs", ()):
            value = self.get(need)
            if value is None:
                raise UserError(f"callbacks.{name} needs `{need}`, which is null; set it or switch the callback off")
            setattr(callback, need, value)

    def get(self, need: str) -> Any:
        """The value, built on first use; None where the configuration has null."""
        if need not in self._made:
            self._made[need] = getattr(self, f"_{need}")()
        return self._made[need]

    def check_codes(self, module: LightningModule) -> None:
        """Stored codes, network and tokenizer must belong together.

        Raises:
            UserError: another codebook size, grid, number of classes or tokenizer.
        """
        manifest = getattr(self.data, "manifest", None)
        if manifest is None or not isinstance(getattr(module, "network", None), AiM):
            return
        config, where = module.network.config, f"the token shards in {self.data.path}"
        facts = {
            "codebook_size": (manifest.codebook_size, config.vocab_size, "model.network.vocab_size"),
            "codes an image": (manifest.num_tokens, config.num_tokens, "model.network.num_tokens"),
            "classes": (len(manifest.class_names), config.num_classes, "model.network.num_classes"),
        }
        for what, (theirs, ours, key) in facts.items():
            if theirs != ours:
                raise UserError(f"{where} have {what} {theirs}, {key} is {ours}; set {key} {theirs}")
        tokenizer = self.get("tokenizer")
        if tokenizer is not None and tokenizer.weights_hash != manifest.tokenizer_hash:
            raise UserError(
                f"{where} were written by another tokenizer than {self._tokenizer_name()} "
                "(weights hash differs); tokenize again or set tokenizer"
            )

    def _tokenizer_name(self) -> str:
        source = self.document.values["tokenizer"]
        return source["class_path"] if isinstance(source, dict) else source

    def _tokenizer(self) -> Any:
        source = self.document.values["tokenizer"]
        return load_tokenizer(source) if source else None

    def _features(self) -> Any:
        return self.built["features"]

    def _images(self) -> Any:
        return self.built["images"]

    def _sampling(self) -> Any:
        return self.built["sampling"]

    def _class_names(self) -> list[str]:
        return self.data.class_names

    def _configuration(self) -> dict:
        return self.document.values

    def _run_dir(self) -> str:
        return str(self.directory.path)
