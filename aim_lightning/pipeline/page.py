"""The page of `aim-lightning app`: a class and sampling options in, images out while they are decoded."""

import math
import os
from collections import Counter
from dataclasses import replace
from types import ModuleType
from typing import Any

from aim_lightning.pipeline.frames import frames
from aim_lightning.pipeline.pipeline import AiMPipeline
from aim_lightning.sampling import SamplingOptions
from aim_lightning.utils.errors import UserError

MOST_IMAGES = 16
HEIGHT = 520  # pixels of the images on the page
LARGEST_SCALE, LARGEST_TEMPERATURE = 10.0, 2.0
LARGEST_SEED = 2**53 - 1  # browsers keep numbers as doubles
CACHE_SECONDS = (600, 3600)  # Gradio stores each image as a file: how often it looks for old ones, and their age
# Small images are enlarged without smoothing; Gradio's own rule only shrinks.
CSS = "#images img { image-rendering: pixelated; object-fit: contain !important; width: 100%; height: 100% }"


def import_gradio() -> ModuleType:
    """Import Gradio, an optional dependency, without its usage statistics.

    Raises:
        UserError: it is not installed.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read at the import
    try:
        import gradio
    except ImportError as error:
        raise UserError(f"app needs gradio ({error}); install it with pip install 'aim-lightning[app]'") from None
    return gradio


def build_page(pipeline: AiMPipeline, sampling: SamplingOptions, title: str) -> Any:
    """Return the page as `gradio.Blocks`; its users share one queue, one request at a time.

    Args:
        pipeline: the networks.
        sampling: values of the controls at the start, and of all options without a control.
        title: heading of the page.

    Raises:
        UserError: Gradio is not installed, or the options cannot be used on this device.
    """
    gr, labels = import_gradio(), _labels_by_name(pipeline.class_names)
    most = min(MOST_IMAGES, pipeline.resolve(sampling).batch_size)

    def generate(name, images, seed, cfg_scale, temperature, top_k, top_p):
        changes = {"seed": seed, "cfg_scale": cfg_scale, "temperature": temperature, "top_k": top_k, "top_p": top_p}
        try:
            options = replace(sampling, **changes).options()
            for images_BCHW in frames(pipeline, [labels[name]] * images, **options):
                yield pipeline.grid(images_BCHW, math.ceil(math.sqrt(images)))
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from None

    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=CACHE_SECONDS) as page:
        gr.Markdown(f"## {title}")
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                inputs = [
                    gr.Dropdown(list(labels), value=next(iter(labels)), label="Class"),
                    gr.Slider(1, most, min(4, most), step=1, precision=0, label="Images"),
                    gr.Number(sampling.seed, precision=0, minimum=0, maximum=LARGEST_SEED, label="Seed"),
                    *_sliders(gr, sampling, pipeline.aim.config.vocab_size),
                ]
            with gr.Column(scale=2, min_width=320):
                button = gr.Button("Generate", variant="primary")
                # Without the button that shares images on the internet.
                shown = {"show_label": False, "buttons": ["download", "fullscreen"]}
                output = gr.Image(format="png", height=HEIGHT, elem_id="images", interactive=False, **shown)
        button.click(generate, inputs, output, api_name="generate", show_progress="minimal", concurrency_limit=1)
    return page


def _sliders(gr: ModuleType, sampling: SamplingOptions, codes: int) -> list[Any]:
    """Return the sliders of guidance, temperature, top-k and top-p; they include the configured values."""
    scale, temperature = sampling.cfg_scale, sampling.temperature
    return [
        gr.Slider(min(1, scale), max(LARGEST_SCALE, scale), scale, step=0.1, label="Guidance (1 = none)"),
        gr.Slider(0.05, max(LARGEST_TEMPERATURE, temperature), temperature, step=0.05, label="Temperature"),
        gr.Slider(0, codes, min(sampling.top_k, codes), step=1, precision=0, label="Top-k (0 = all)"),
        gr.Slider(0.01, 1, sampling.top_p, step=0.01, label="Top-p (1 = all)"),
    ]


def serve(page: Any, host: str, port: int) -> str:
    """Start the server of a page in the background and return its address.

    Args:
        page: from `build_page`.
        host: address to listen on.
        port: TCP port, 1 to 65535.

    Raises:
        UserError: the port is in use, or the host is not an address of this machine.
    """
    gr = import_gradio()
    _bypass_proxy(host)
    # Fonts of the system: the default theme loads fonts from the internet.
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    options = {"share": False, "ssr_mode": False, "footer_links": [], "run_history": False, "theme": theme, "css": CSS}
    try:
        address = page.launch(server_name=host, server_port=port, prevent_thread_lock=True, quiet=True, **options)[1]
    except OSError:
        fact = f"{host}:{port} is in use, or is not an address of this machine"
        raise UserError(f"app: {fact}; set another --port or --host") from None
    return address


def _bypass_proxy(host: str) -> None:
    """Exclude this machine from HTTP proxies: Gradio sends requests to its own server at the start."""
    listed = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
    os.environ["no_proxy"] = ",".join(filter(None, (listed, "127.0.0.1", "localhost", host)))


def _labels_by_name(class_names: list[str]) -> dict[str, int]:
    """Return labels by class name; names that several classes share end with the number of the class."""
    counts = Counter(class_names)
    return {name if counts[name] == 1 else f"{name} ({i})": i for i, name in enumerate(class_names)}
