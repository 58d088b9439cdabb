"""A folder of small tar shards, and a server on this machine that hands them out, or fails to."""

import io
import tarfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image

from varlit.data.formats import tar_stream
from varlit.data.formats.shards_file import Shard, ShardList, write_shard_list

MakeShards = Callable[..., Path]


def add_file(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def picture(row: int) -> bytes:
    """An image that tells its row by its red."""
    content = io.BytesIO()
    Image.new("RGB", (20, 24), (row, 0, 0)).save(content, "png")
    return content.getvalue()


def write_shard(path: Path, rows: range, num_classes: int) -> Shard:
    with tarfile.open(path, "w") as tar:
        for row in rows:
            add_file(tar, f"image{row:04d}.png", picture(row))
            add_file(tar, f"image{row:04d}.cls", str(row % num_classes).encode())
    return Shard(path.name, len(rows), path.stat().st_size, f"sum of {path.name}")


@pytest.fixture
def make_shards(tmp_path: Path) -> MakeShards:
    """Return what writes shards of the given sizes; rows count on from train to val."""

    def make(
        train: tuple[int, ...] = (10, 7, 12, 3, 8), val: tuple[int, ...] = (), num_classes: int = 3
    ) -> Path:
        folder = tmp_path / "shards"
        folder.mkdir()
        splits = {}
        for split, sizes in (("train", train), ("val", val)):
            ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
            splits[split] = tuple(
                write_shard(folder / f"{split}-{i:03d}.tar", range(end - size, end), num_classes)
                for i, (size, end) in enumerate(zip(sizes, ends, strict=True))
            )
        names = tuple("abcdefgh"[:num_classes])
        write_shard_list(ShardList(names, {k: v for k, v in splits.items() if v}), folder)
        return folder

    return make


@dataclass
class ShardServer:
    """A web server for one folder.

    Attributes:
        url: Its address.
        folder: What it serves.
        asked: Names that were asked for.
        faults: By name, what happens to the next requests: "absent", "cut" in the middle, "drop".
    """

    url: str = ""
    folder: Path = Path()
    asked: list[str] = field(default_factory=list)
    faults: dict[str, list[str]] = field(default_factory=dict)


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, state: ShardServer, *args: object) -> None:
        self.state = state
        super().__init__(*args)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        name = self.path.lstrip("/")
        self.state.asked.append(name)
        faults = self.state.faults.get(name, [])
        fault = faults.pop(0) if faults else ""
        path = self.state.folder / name
        if fault == "drop":
            self.close_connection = True
            return
        if fault == "absent" or not path.is_file():
            self.send_error(404)
            return
        content = path.read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if fault == "cut" else content)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def shard_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ShardServer]:
    """Serve a folder (set `.folder`) on this machine; nobody waits between attempts."""
    monkeypatch.setattr(tar_stream, "WAITS_S", (0, 0))
    state = ShardServer()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, state))
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield state
    server.shutdown()
    server.server_close()
    thread.join()
