"""CIFAR-10's download, watched: a small archive of its format served on this host to torchvision's downloader."""

from __future__ import annotations

import hashlib
import io
import pickle
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10

from bnbench.compose import compose_jobs
from bnbench.data import load

TRAIN, TEST = 20, 6


@dataclass
class Server:
    """What is served, and what was asked for. `cut` bytes of the archive are withheld."""

    archive: bytes
    images: np.ndarray
    labels: list[int]
    cut: int = 0
    asked: list[str] = field(default_factory=list)


def _archive(images: np.ndarray, labels: list[int]) -> tuple[bytes, dict[str, str]]:
    """The tar.gz, and the MD5 sum of each file in it."""
    parts = {f"data_batch_{n}": slice(4 * n - 4, 4 * n) for n in range(1, 6)}
    parts["test_batch"] = slice(TRAIN, TRAIN + TEST)
    files = {name: pickle.dumps({"data": images[at], "labels": labels[at]}) for name, at in parts.items()}
    files["batches.meta"] = pickle.dumps({"label_names": [str(n) for n in range(10)]})
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{CIFAR10.base_folder}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return packed.getvalue(), {name: hashlib.md5(content).hexdigest() for name, content in files.items()}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (TRAIN + TEST, 3072), dtype=np.uint8)
    labels = random.integers(0, 10, TRAIN + TEST).tolist()
    archive, sums = _archive(images, labels)
    serving = Server(archive, images, labels)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.headers["Method"] != "HEAD":  # torchvision looks for redirections by a GET that says so
                serving.asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(archive)))
            self.end_headers()
            self.wfile.write(archive[: len(archive) - serving.cut])

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(CIFAR10, "url", f"http://127.0.0.1:{http.server_port}/{CIFAR10.filename}")
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(archive).hexdigest())
    for name in ("train_list", "test_list"):
        monkeypatch.setattr(CIFAR10, name, [[file, sums[file]] for file, _ in getattr(CIFAR10, name)])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": sums["batches.meta"]})
    yield serving
    http.shutdown()
    http.server_close()
    thread.join()


def _splits(root: Path, *words: str):
    (config,) = compose_jobs(["data=cifar10", f"data.root={root}", *words], multirun=False)
    return load(config.data)


def test_it_is_fetched_once_unpacked_and_loaded(tmp_path: Path, server: Server) -> None:
    root = tmp_path / "data" / "cifar10"
    splits = _splits(root)
    assert server.asked == [f"/{CIFAR10.filename}"]
    assert (root / CIFAR10.filename).read_bytes() == server.archive
    assert (root / CIFAR10.base_folder / "data_batch_5").is_file()
    pixels = torch.from_numpy(server.images.reshape(-1, 3, 32, 32))
    assert torch.equal(splits.train.images, pixels[:TRAIN])
    assert torch.equal(splits.test.images, pixels[TRAIN:])
    assert splits.train.labels.tolist() + splits.test.labels.tolist() == server.labels

    again = _splits(root)
    without = _splits(root, "data.download=false")
    assert len(server.asked) == 1, "what is there is not fetched again"
    assert again.train.digest() == without.train.digest() == splits.train.digest()


def test_it_is_unpacked_again_without_fetching(tmp_path: Path, server: Server) -> None:
    """The folder is gone, the archive is there."""
    _splits(tmp_path)
    for path in (tmp_path / CIFAR10.base_folder).iterdir():
        path.unlink()
    assert len(_splits(tmp_path).train) == TRAIN
    assert len(server.asked) == 1


def test_a_connection_that_breaks_is_one_line_and_leaves_no_half(tmp_path: Path, server: Server) -> None:
    server.cut = 100
    root = tmp_path / "new"
    with pytest.raises(ValueError, match=r"data=cifar10 .*could not be downloaded") as caught:
        _splits(root)
    assert "\n" not in str(caught.value)
    assert not root.exists()
    server.cut = 0
    assert len(_splits(root).test) == TEST
