"""Downloads, watched: small archives of the published formats served on this host to torchvision's downloader."""

from __future__ import annotations

import hashlib
import io
import pickle
import struct
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from gzip import compress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.datasets import CIFAR10, CIFAR100, FashionMNIST

from bnbench.compose import compose_jobs
from bnbench.data import ImageSet, load
from bnbench.lock import Lock

TRAIN, TEST = 20, 6


@dataclass
class Server:
    """What is served by name, and what was asked for. `cut` bytes of each file are withheld."""

    files: dict[str, bytes] = field(default_factory=dict)
    address: str = ""
    cut: int = 0
    asked: list[str] = field(default_factory=list)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    serving = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.headers["Method"] != "HEAD":  # torchvision looks for redirections by a GET that says so
                serving.asked.append(self.path.strip("/"))
            content = serving.files[self.path.strip("/")]
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) - serving.cut])

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    serving.address = f"http://127.0.0.1:{http.server_port}/"
    yield serving
    http.shutdown()
    http.server_close()
    thread.join()


@dataclass
class Offered:
    """A data set on the server: its pixels (N, 3, H, W) and labels, training images first, and its files' folder."""

    name: str
    pixels: Tensor
    labels: list[int]
    folder: str
    archives: list[str]


def _md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def _offer_cifar(server: Server, patch: pytest.MonkeyPatch, dataset: type[CIFAR10], classes: int) -> Offered:
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (TRAIN + TEST, 3072), dtype=np.uint8)
    labels = draw.integers(0, classes, TRAIN + TEST).tolist()
    key, names = ("labels", "label_names") if classes == 10 else ("fine_labels", "fine_label_names")
    size = TRAIN // len(dataset.train_list)
    parts = {name: slice(size * n, size * n + size) for n, (name, _) in enumerate(dataset.train_list)}
    parts[dataset.test_list[0][0]] = slice(TRAIN, TRAIN + TEST)
    files = {name: pickle.dumps({"data": images[at], key: labels[at]}) for name, at in parts.items()}
    files[dataset.meta["filename"]] = pickle.dumps({names: [str(n) for n in range(classes)]})
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{dataset.base_folder}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    server.files[dataset.filename] = packed.getvalue()
    patch.setattr(dataset, "url", server.address + dataset.filename)
    patch.setattr(dataset, "tgz_md5", _md5(packed.getvalue()))
    for which in ("train_list", "test_list"):
        patch.setattr(dataset, which, [[name, _md5(files[name])] for name, _ in getattr(dataset, which)])
    patch.setattr(dataset, "meta", {**dataset.meta, "md5": _md5(files[dataset.meta["filename"]])})
    pixels = torch.from_numpy(images.reshape(-1, 3, 32, 32))
    return Offered(f"cifar{classes}", pixels, labels, dataset.base_folder, [dataset.filename])


def _offer_fashion(server: Server, patch: pytest.MonkeyPatch) -> Offered:
    """Four gzipped IDX files: a magic number, the sizes, the bytes."""
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (TRAIN + TEST, 28, 28), dtype=np.uint8)
    labels = draw.integers(0, 10, TRAIN + TEST, dtype=np.uint8)
    for part, at in (("train", slice(TRAIN)), ("t10k", slice(TRAIN, None))):
        count = len(labels[at])
        pictures = struct.pack(">IIII", 0x803, count, 28, 28) + images[at].tobytes()
        server.files[f"{part}-images-idx3-ubyte.gz"] = compress(pictures)
        server.files[f"{part}-labels-idx1-ubyte.gz"] = compress(
            struct.pack(">II", 0x801, count) + labels[at].tobytes()
        )
    patch.setattr(FashionMNIST, "mirrors", [server.address])
    names = [name for name, _ in FashionMNIST.resources]
    patch.setattr(FashionMNIST, "resources", [(name, _md5(server.files[name])) for name in names])
    pixels = torch.from_numpy(images)[:, None].expand(-1, 3, -1, -1)
    return Offered("fashion_mnist", pixels, labels.tolist(), "FashionMNIST/raw", names)


@pytest.fixture(params=["cifar10", "cifar100", "fashion_mnist"])
def offered(request: pytest.FixtureRequest, server: Server, monkeypatch: pytest.MonkeyPatch) -> Offered:
    if request.param == "fashion_mnist":
        return _offer_fashion(server, monkeypatch)
    dataset, classes = {"cifar10": (CIFAR10, 10), "cifar100": (CIFAR100, 100)}[request.param]
    return _offer_cifar(server, monkeypatch, dataset, classes)


def _sets(root: Path, offered: Offered, *words: str) -> tuple[ImageSet, ImageSet]:
    (config,) = compose_jobs([f"data={offered.name}", f"data.root={root}", *words], multirun=False)
    splits = load(config.data)
    assert isinstance(splits.train, ImageSet) and isinstance(splits.test, ImageSet)
    assert splits.train.shape[-1] == config.data.side
    return splits.train, splits.test


def test_it_is_fetched_once_unpacked_and_loaded(tmp_path: Path, server: Server, offered: Offered) -> None:
    root = tmp_path / "data" / "here"
    train, test = _sets(root, offered)
    assert server.asked == offered.archives
    assert torch.equal(train.images, offered.pixels[:TRAIN])
    assert torch.equal(test.images, offered.pixels[TRAIN:])
    assert train.labels.tolist() + test.labels.tolist() == offered.labels
    assert train.labels.dtype == torch.int64
    assert train.num_classes == (100 if offered.name == "cifar100" else 10)

    again, _ = _sets(root, offered)
    without, few = _sets(root, offered, "data.download=false", "data.max_test=2")
    assert len(server.asked) == len(offered.archives), "what is there is not fetched again"
    assert again.digest() == without.digest() == train.digest()
    assert len(few) == 2
    with pytest.raises(ValueError, match=r"^data\.max_train=21 is more than the 20 images"):
        _sets(root, offered, "data.max_train=21")


def test_it_is_unpacked_again_without_fetching(tmp_path: Path, server: Server, offered: Offered) -> None:
    """What was unpacked is gone, the archives are there."""
    _sets(tmp_path, offered)
    for path in (tmp_path / offered.folder).iterdir():
        if path.name not in offered.archives:
            path.unlink()
    assert len(_sets(tmp_path, offered)[0]) == TRAIN
    assert len(server.asked) == len(offered.archives)


def test_a_connection_that_breaks_is_one_line_and_leaves_no_half(
    tmp_path: Path, server: Server, offered: Offered
) -> None:
    server.cut = 10
    root = tmp_path / "new"
    with pytest.raises(ValueError, match=rf"data={offered.name} .*could not be downloaded") as caught:
        _sets(root, offered)
    assert "\n" not in str(caught.value)
    assert not root.exists()
    server.cut = 0
    assert len(_sets(root, offered)[1]) == TEST


def test_what_is_not_there_and_may_not_be_fetched_is_one_line(tmp_path: Path, offered: Offered) -> None:
    with pytest.raises(
        ValueError, match=rf"data={offered.name} is not at .* put a whole {offered.folder} there"
    ) as caught:
        _sets(tmp_path, offered, "data.download=false")
    assert "\n" not in str(caught.value)


def test_who_comes_while_another_downloads_waits_for_it(
    tmp_path: Path, server: Server, offered: Offered, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, waited = tmp_path / "shared", list[float]()
    root.mkdir()
    other = Lock(root)
    assert other.take()

    def the_other_ends(seconds: float) -> None:
        waited.append(seconds)
        assert not server.asked
        other.release()

    monkeypatch.setattr("bnbench.data.published.time.sleep", the_other_ends)
    assert len(_sets(root, offered)[0]) == TRAIN
    assert len(waited) == 1
    assert not (root / ".lock").exists()


def test_a_file_that_was_cut_off_is_one_line(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fashion-MNIST's unpacked files have no sums to be checked by."""
    offered = _offer_fashion(server, monkeypatch)
    _sets(tmp_path, offered)
    cut = tmp_path / offered.folder / "train-images-idx3-ubyte"
    for kept in (500, 2, 0):
        cut.write_bytes(cut.read_bytes()[:kept])
        with pytest.raises(
            ValueError, match=r"data=fashion_mnist is not at .* read \(.+\): put a whole FashionMNIST/raw"
        ):
            _sets(tmp_path, offered)
