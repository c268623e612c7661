"""The sections of a configuration. Light: only names of classes, nothing heavy is imported here."""

from aim_lightning.config.check import ClassSection, NamedSection, ScalarSection

# Options of Lightning's Trainer that the framework sets, or that conflict with resuming at the exact row.
TRAINER_PROVIDED = {
    "callbacks": "name callbacks in the section `callbacks`",
    "logger": "name loggers in the section `logger`",
    "default_root_dir": "results go to runs_root/experiment/run",
    "use_distributed_sampler": "the data sections distribute rows themselves",
    "accumulate_grad_batches": "it follows from data.global_batch_size and data.max_device_batch_size",
    "limit_train_batches": "an epoch is the whole data set; use max_steps for a shorter training",
    "overfit_batches": "an epoch is the whole data set; use a small data set instead",
    "fast_dev_run": "try a separate run: --run try --trainer.max_steps 3",
}

SECTIONS = {
    "experiment": ScalarSection(str, "name of the experiment; results go to runs/EXPERIMENT/RUN", required=True),
    "run": ScalarSection(str, "name of the run"),
    "runs_root": ScalarSection(str, "directory of all runs"),
    "seed_everything": ScalarSection(int, "seed of all randomness of the run"),
    "model": ClassSection(
        base="lightning.pytorch.LightningModule", description="what is trained, and how", required=True
    ),
    "data": ClassSection(
        base="lightning.pytorch.LightningDataModule", description="what it is trained on", required=True
    ),
    "images": ClassSection(
        fixed="aim_lightning.data.images.dataset.Images", description="the reference images and their size"
    ),
    "tokenizer": ScalarSection(
        str | None, "run directory, checkpoint or published weights of the tokenizer, or its class", or_class=True
    ),
    "tokenize": ClassSection(
        fixed="aim_lightning.cli.commands.tokenize.TokenizeSection", description="defaults of the options of `tokenize`"
    ),
    "features": ClassSection(
        base="aim_lightning.metrics.features.FeatureNetwork", description="feature network of the Fréchet distance"
    ),
    "sampling": ClassSection(
        fixed="aim_lightning.sampling.options.SamplingOptions", description="guidance, temperature, top-k, top-p"
    ),
    "callbacks": NamedSection(
        base="lightning.pytorch.Callback", description="named callbacks, --callbacks.NAME.OPTION; null switches one off"
    ),
    "logger": NamedSection(
        base="lightning.pytorch.loggers.Logger",
        provided={"save_dir": "all loggers write to the run directory, RUNS_ROOT/EXPERIMENT/RUN"},
        description="named loggers, --logger.NAME.OPTION; null switches one off",
    ),
    "cluster": ClassSection(
        fixed="aim_lightning.cluster.options.ClusterOptions", description="how `slurm` submits the run"
    ),
    "trainer": ClassSection(
        fixed="lightning.pytorch.Trainer", provided=TRAINER_PROVIDED, description="options of Lightning's Trainer"
    ),
}
# Their values stay the text that was typed: a run may be called 001.
TEXTS = {name for name, section in SECTIONS.items() if isinstance(section, ScalarSection) and section.type is not int}
