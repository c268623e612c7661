"""Networks that are not trained and values that callbacks need, each built once from one key."""

from collections.abc import Callable
from functools import cache
from typing import Any

from lightning.pytorch import Callback, LightningModule

from aim_lightning.cli.config import Config
from aim_lightning.data.stream_datamodule import StreamDataModule
from aim_lightning.models import AutoregressiveNetwork, VQModel
from aim_lightning.pipeline import load_tokenizer
from aim_lightning.pipeline.pipeline import check_guidance
from aim_lightning.utils.errors import UserError


class CallbackResources:
    """Build the values that callbacks list in their class attribute `needs`, each once.

    Names: tokenizer, features, images, sampling, class_names, configuration, run_dir.

    Args:
        built: the instantiated sections.
        config: of the run.
        data: the data section, set up.
    """

    def __init__(self, built: Any, config: Config, data: StreamDataModule) -> None:
        self.data = data
        self.model = built["model"]
        self.source = config.values["tokenizer"]
        tokenizer = cache(lambda: load_tokenizer(self.source) if self.source else None)
        self.values: dict[str, Callable[[], Any]] = {
            "tokenizer": tokenizer,
            **{name: lambda name=name: built[name] for name in ("features", "images", "sampling")},
            "class_names": lambda: data.class_names,
            "configuration": lambda: config.values,
            "run_dir": lambda: str(config.run_directory.path),
        }

    def provide(self, name: str, callback: Callback) -> None:
        """Set every needed attribute of a callback.

        Raises:
            UserError: the configuration lacks the value, or guidance needs classes that training leaves out.
        """
        for need in getattr(callback, "needs", ()):
            value = self.values[need]()
            if value is None:
                raise UserError(f"callbacks.{name} needs `{need}`, which is null; set it or switch the callback off")
            setattr(callback, need, value)
        allowed = getattr(callback, "allow_untrained_guidance", False)
        # A network that starts from other weights may have its null class from them.
        if hasattr(callback, "sampling") and hasattr(self.model, "label_dropout") and not allowed:
            dropout = None if self.model.init_from else self.model.label_dropout
            check_guidance(callback.sampling, dropout, self.model.network.config.num_tokens)

    def check_codes(self, module: LightningModule) -> None:
        """Check that stored codes or images, network and tokenizer belong together.

        Raises:
            UserError: another codebook size, grid, number of classes, tokenizer or size of the images.
        """
        manifest, network = getattr(self.data, "manifest", None), getattr(module, "network", None)
        # The network also takes other sizes, but its grid of codes is that of its image_size.
        if isinstance(network, VQModel) and (images := self.values["images"]()):
            size, expected = images.image_size, network.config.image_size
            if size != expected:
                raise UserError(f"images.image_size is {size}, model.network.image_size {expected}; set one size")
        if manifest is None or not isinstance(network, AutoregressiveNetwork):
            return
        shards = f"the token shards in {self.data.path}"
        facts = {
            "codebook_size": (manifest.codebook_size, "vocab_size"),
            "codes per image": (manifest.num_tokens, "num_tokens"),
            "classes": (len(manifest.class_names), "num_classes"),
        }
        for fact, (stored, field) in facts.items():
            if stored != (configured := getattr(network.config, field)):
                key = f"model.network.{field}"
                raise UserError(f"{shards} have {fact} {stored}, {key} is {configured}; set {key} {stored}")
        tokenizer = self.values["tokenizer"]()
        if tokenizer is not None and tokenizer.weights_hash != manifest.tokenizer_hash:
            name = self.source["class_path"] if isinstance(self.source, dict) else self.source
            raise UserError(
                f"{shards} were written by another tokenizer than {name} (weights hash differs); "
                "tokenize again or set tokenizer"
            )
