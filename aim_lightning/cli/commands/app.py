"""`aim-lightning app`: serve a page in the browser that generates images with a trained run."""

import argparse
import os
import tempfile

from aim_lightning.cli.common_options import add_shared, number, option
from aim_lightning.cli.config import Config

HELP = "serve a page that generates images with a trained run (needs the extra `app`)"
WITHOUT_RUN = ("weights",)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    add_shared(parser, "raw", "allow_untrained_guidance", "checkpoint", "weights")
    parser.add_argument("--port", **option("TCP port of the page", 7860, type=number(int, 1, 65535)))
    address = "address to listen on; 0.0.0.0 also serves other machines, without a password"
    parser.add_argument("--host", **option(address, "127.0.0.1"))


def run(config: Config, options: argparse.Namespace) -> int:
    """Load the networks and serve the page until Ctrl-C."""
    import torch

    from aim_lightning.cli.build import evaluation_setup as setup
    from aim_lightning.cli.commands.evaluate import OF_RUN
    from aim_lightning.pipeline.page import build_page, import_gradio, serve

    import_gradio()  # a missing package is reported before weights are read
    setup.refuse(options, "--weights", OF_RUN)
    sampling = config.sampling
    model = setup.load_model(config, options, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    run = () if options.weights else (config.values["experiment"], config.values["run"])
    # Gradio's own directory, /tmp/gradio, may belong to another user, and its images stay there.
    with tempfile.TemporaryDirectory(prefix="aim_app_") as directory:
        os.environ["GRADIO_TEMP_DIR"] = directory
        page = build_page(model.pipeline, sampling, ", ".join((*run, model.name)))
        address = serve(page, options.host, options.port)
        print(f"page: {address} (Ctrl-C ends it)", flush=True)
        page.block_thread()
    return 0
