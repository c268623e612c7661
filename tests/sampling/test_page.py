"""The page: rows as they are decoded, one queue for all users, over loopback and in a browser."""

import json
import shutil
import socket
import sys
import threading
import time

import numpy as np
import pytest
import torch
from helpers import assert_user_error, free_port, skip_without, wait_for
from huggingface_hub import constants
from PIL import Image
from sampling.test_pipeline import LABELS, pipeline  # noqa: F401

from aim_lightning.pipeline import frames
from aim_lightning.pipeline import page as page_module
from aim_lightning.pipeline.page import build_page, import_gradio, serve
from aim_lightning.sampling import SamplingOptions
from aim_lightning.utils.grid import TILE

ROWS, GREY = 2, 128
NAMES = ["cat", "dog", "cat"]
CALL = {"name": "dog", "images": 4, "seed": 3, "cfg_scale": 2, "temperature": 0.9, "top_k": 9, "top_p": 0.95}


@pytest.mark.parametrize("decoder", ["plain", "fast"])
def test_one_frame_per_row_and_the_last_is_what_generate_returns(pipeline, decoder):  # noqa: F811
    options = {"seed": 1, "cfg_scale": 2.0, "decoder": decoder}
    first, last = frames(pipeline, LABELS, **options)
    assert (first[:, :, 2:] == GREY).all() and first[:, :, :2].float().std() > 1
    assert torch.equal(last, pipeline.generate(LABELS, batch_size=len(LABELS), **options))


def test_an_error_of_the_sampler_ends_the_frames(pipeline):  # noqa: F811
    assert_user_error("temperature", list, frames(pipeline, [1], temperature=0.0))
    pipeline.aim.lm_head.weight.data.fill_(float("nan"))
    assert_user_error("not finite", list, frames(pipeline, [1]))


def test_sampling_stops_when_the_frames_are_closed(pipeline, monkeypatch):  # noqa: F811
    steps, preview = [], pipeline.preview

    def slow(show):
        on_step = preview(show)
        return lambda step, codes: (steps.append(step), on_step(step, codes), time.sleep(0.05))

    monkeypatch.setattr(pipeline, "preview", slow)
    images, threads = frames(pipeline, [1]), threading.active_count()
    next(images)
    images.close()
    assert len(steps) < 4 and threading.active_count() == threads


def test_samplings_never_overlap(pipeline, monkeypatch):  # noqa: F811
    running, most, preview, generate = set(), [], pipeline.preview, pipeline.generate

    def recorded(show):
        on_step = preview(show)
        return lambda step, codes: (running.add(threading.get_ident()), on_step(step, codes), time.sleep(0.02))

    monkeypatch.setattr(pipeline, "preview", recorded)

    def alone(*arguments, **options):
        images = generate(*arguments, **options)
        most.append(len(running))
        running.clear()
        return images

    monkeypatch.setattr(pipeline, "generate", alone)
    pairs = list(zip(frames(pipeline, [1], seed=1), frames(pipeline, [1], seed=2), strict=True))
    assert most == [1, 1] and len(pairs) == ROWS


@pytest.fixture
def address(pipeline, monkeypatch, tmp_path):  # noqa: F811
    """Serve the page of a small network behind a proxy that refuses everything, and yield its address."""
    for name, value in {"GRADIO_TEMP_DIR": str(tmp_path), "http_proxy": "http://127.0.0.1:9", "no_proxy": "x"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # of Gradio's client
    hosts, resolve = set(), socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *rest, **more: hosts.add(host) or resolve(host, *rest, **more)
    )
    pipeline.class_names = NAMES
    page = build_page(pipeline, SamplingOptions(cfg_scale=1.5, batch_size=9), "small")
    yield serve(page, "127.0.0.1", free_port())
    page.close(verbose=False)
    assert hosts <= {"127.0.0.1", "localhost"}  # server, clients and driver look for no other host


def client(address):
    from gradio_client import Client

    return Client(address, verbose=False, analytics_enabled=False)


def pixels(path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_rows_arrive_over_the_network_and_the_options_take_effect(address, pipeline):  # noqa: F811
    job = client(address).submit(**CALL, api_name="/generate")
    job.result(timeout=60)
    shown = [pixels(path) for path in job.outputs()]
    options = {name: value for name, value in CALL.items() if name not in ("name", "images")}
    images = pipeline.generate([1] * 4, batch_size=4, **options)
    assert len(shown) == ROWS and np.array_equal(shown[-1], np.asarray(pipeline.grid(images, 2)))
    lower = slice(TILE // 2, TILE), slice(TILE)
    assert (shown[0][lower] == GREY).all() and not (shown[1][lower] == GREY).all()


WRONG = [({"name": "cow"}, "cow"), ({"images": 10}, "10"), ({"temperature": 9}, "9"), ({"name": "cat"}, "cat")]
WRONG += [({"seed": -1}, "-1"), ({"top_p": 0}, "0"), ({"seed": None}, "seed is None")]


def test_values_out_of_range_are_refused_by_the_server(address):
    user = client(address)
    for change, text in WRONG:
        with pytest.raises(Exception, match=text):
            user.predict(**CALL | change, api_name="/generate")
    user.predict(**CALL | {"name": "cat (2)"}, api_name="/generate")  # two classes share this name


def test_users_wait_in_one_queue(address, monkeypatch):
    running, most = [], []

    def slow(*arguments, **options):
        running.append(1)
        most.append(len(running))
        time.sleep(0.1)
        try:
            yield from frames(*arguments, **options)
        finally:
            running.pop()

    monkeypatch.setattr(page_module, "frames", slow)
    users = [client(address) for _ in range(3)]
    jobs = [user.submit(**CALL | {"seed": seed}, api_name="/generate") for seed, user in enumerate(users)]
    results = [pixels(job.result(timeout=60)).tobytes() for job in jobs]
    assert most == [1, 1, 1] and len(set(results)) == 3


def test_a_port_in_use_is_named(address, pipeline):  # noqa: F811
    port = int(address.rstrip("/").rpartition(":")[2])
    page = build_page(pipeline, SamplingOptions(), "second")
    assert_user_error(f"app: 127.0.0.1:{port} is in use, .* set another --port", serve, page, "127.0.0.1", port)


@pytest.fixture
def browser():
    """Return a headless Chromium that logs its requests."""
    for program in ("chromium", "chromedriver"):
        skip_without(program)
    from selenium.webdriver import Chrome, ChromeOptions, ChromeService

    options = ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1100,760"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    chrome = Chrome(options, ChromeService(shutil.which("chromedriver")))
    yield chrome
    chrome.quit()


# Collects the address of every image that the page shows.
OBSERVER = """
window.shown = [];
new MutationObserver(() => {
  const image = document.querySelector('#images img');
  if (image && window.shown.at(-1) !== image.src) window.shown.push(image.src);
}).observe(document.body, {subtree: true, childList: true, attributes: true});
"""


def test_a_browser_shows_the_rows_and_loads_nothing_from_other_hosts(address, browser, monkeypatch, pipeline):  # noqa: F811
    def slow(*arguments, **options):
        for images in frames(*arguments, **options):
            yield images
            time.sleep(0.3)  # longer than the browser takes to show a frame

    monkeypatch.setattr(page_module, "frames", slow)
    browser.get(address)
    buttons = lambda: browser.find_elements("xpath", "//button[text()='Generate']")  # noqa: E731
    wait_for(buttons)
    text = browser.find_element("tag name", "body").text
    labels = ("small", "Class", "Images", "Seed", "Guidance", "Temperature", "Top-k", "Top-p")
    assert not [label for label in labels if label not in text], text
    browser.execute_script(OBSERVER)
    buttons()[0].click()
    wait_for(lambda: len(browser.execute_script("return window.shown")) == ROWS)
    wait_for(lambda: browser.execute_script("return document.querySelector('#images img').naturalWidth"))
    side = browser.execute_script("return document.querySelector('#images img').naturalWidth")
    assert side == pipeline.grid(pipeline.generate([0] * 4), 2).width
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [item["params"]["request"]["url"] for item in messages if item["method"] == "Network.requestWillBeSent"]
    assert sent and not [url for url in sent if not url.startswith((address, "data:", "blob:"))]


def test_a_missing_gradio_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert_user_error("app needs gradio .*; install it with pip install 'aim-lightning\\[app\\]'", import_gradio)
