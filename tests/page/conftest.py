"""A tiny VAR behind a server on a free port, and a client that speaks HTTP to it."""

import base64
import http.client
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from varlit.generation.sampler import Sampler
from varlit.models.config import TokenizerConfig, VARConfig
from varlit.models.var import VAR
from varlit.models.vqvae import VQVAE
from varlit.page.command import Opened
from varlit.page.drawing import Studio
from varlit.page.server import PageServer

TOKENIZER = TokenizerConfig(
    channels=32,
    channel_multipliers=(1, 1, 1),
    num_res_blocks=1,
    codebook_size=24,
    codebook_dim=8,
    scales=(1, 2, 4, 8),
)
SIDE_PX = TOKENIZER.image_size  # 32
CLASSES = ("ant", "bee", "cow's")
PLAIN = {
    "label": 1,
    "cfg_scale": 2.0,
    "top_k": 0,
    "top_p": 0.9,
    "seed": 5,
    "num_variants": 2,
}


def png_text(pixels: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()


def png_pixels(text: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB"))


@dataclass
class Client:
    """Asks as a browser would, with what a test changes."""

    port: int

    def send(
        self, method: str, path: str, body: Any = None, **headers: str
    ) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        given = {"Content-Type": "application/json"} if method == "POST" else {}
        given |= {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, given)
        return connection.getresponse()

    def draw(self, **changes: Any) -> list[dict[str, Any]]:
        response = self.send("POST", "/api/draw", PLAIN | changes)
        assert response.status == 200, response.read()
        return [json.loads(line) for line in response]

    def refused(self, body: Any, **headers: str) -> tuple[int, str]:
        response = self.send("POST", "/api/draw", body, **headers)
        text = response.read().decode()
        assert "Traceback" not in text
        return response.status, json.loads(text)["message"]


class Gate:
    """Lets the sampling loop go step by step, so that a test can look at it half way."""

    def __init__(self) -> None:
        self.steps_done, self.allowed = 0, threading.Semaphore(0)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> "Gate":
        steps = Sampler.steps

        def gated(*args: Any, **settings: Any) -> Iterator[Any]:
            for drawn in steps(*args, **settings):
                assert self.allowed.acquire(timeout=30)
                self.steps_done += 1
                yield drawn

        monkeypatch.setattr(Sampler, "steps", gated)
        return self

    def open(self, num_steps: int = 1000) -> None:
        self.allowed.release(num_steps)

    def close(self) -> None:
        while self.allowed.acquire(blocking=False):
            pass


def wait_for(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.01)


def build_studio(
    num_classes: int = 3, class_names: tuple[str, ...] = CLASSES, is_bf16: bool = False
) -> Studio:
    torch.manual_seed(0)
    tokenizer = VQVAE(TOKENIZER).eval().requires_grad_(False)
    torch.nn.init.normal_(tokenizer.quantizer.codebook.weight, std=0.5)
    config = VARConfig(depth=1, width=32, num_heads=2, drop_path=0.0, class_dropout=0.0)
    var = VAR(config, TOKENIZER, num_classes).eval().requires_grad_(False)
    for name, parameter in var.named_parameters():
        if not name.endswith("log_scale"):
            torch.nn.init.normal_(parameter, std=0.3)
    return Studio(var, tokenizer, Opened("tiny", num_classes, class_names), is_bf16)


@pytest.fixture
def plain() -> dict[str, Any]:
    """A request without fault; what it lacks is optional."""
    return dict(PLAIN)


@pytest.fixture
def png() -> Callable[[np.ndarray], str]:
    """From pixels to what is sent."""
    return png_text


@pytest.fixture
def pixels() -> Callable[[str], np.ndarray]:
    """From what was sent to pixels."""
    return png_pixels


@pytest.fixture
def wait_until() -> Callable[[Callable[[], bool]], None]:
    return wait_for


@pytest.fixture
def make_studio() -> Callable[..., Studio]:
    return build_studio


@pytest.fixture
def edit() -> dict[str, Any]:
    """A photo of noise whose left half is to be drawn anew."""
    noise = np.random.default_rng(0).integers(0, 255, (SIDE_PX, SIDE_PX, 3), dtype=np.uint8)
    mask = np.zeros((SIDE_PX, SIDE_PX), dtype=np.uint8)
    mask[:, : SIDE_PX // 2] = 255
    return {"image": png_text(noise), "mask": png_text(mask), "keep_rest": True}


@pytest.fixture(scope="session")
def studio() -> Studio:
    return build_studio()


@pytest.fixture
def serve() -> Iterator[Callable[..., PageServer]]:
    """Starts servers, and leaves neither them nor their threads behind."""
    started = []

    def start(studio: Studio, host: str = "127.0.0.1") -> PageServer:
        server = PageServer(studio, host)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        started.append((server, thread))
        return server

    yield start
    for server, thread in started:
        server.shutdown()
        server.stop()
        thread.join()


@pytest.fixture
def client(serve: Callable[..., PageServer], studio: Studio) -> Client:
    return Client(serve(studio).port)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    made = Gate().install(monkeypatch)
    yield made
    made.open()
