"""Data sets: files in the real formats, small, from a local server that can misbehave.

About 4 seconds.
"""

import gzip
import hashlib
import io
import struct
import tarfile
import threading
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from edm_tutorial.images import data


class Handler(BaseHTTPRequestHandler):
    """Serves `server.files`; a path in `server.cut` breaks off half way, once."""

    def do_GET(self):
        server, name = self.server, self.path.lstrip("/")
        server.asked.append(name)
        if name not in server.files:
            self.send_error(404)
            return
        content = server.files[name]
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if name in server.cut:
            server.cut.remove(name)
            content = content[: len(content) // 2]
        self.wfile.write(content)

    def log_message(self, format, *args):
        pass


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.cut, server.asked = {}, set(), []
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def serve(server, name, content):
    server.files[name] = content
    url = f"http://127.0.0.1:{server.server_address[1]}/{name}"
    return data.Source(url, hashlib.sha256(content).hexdigest())


def idx(array):
    """The IDX file of an array of bytes, as described on MNIST's page."""
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return gzip.compress(header + array.tobytes())


def cifar_archive(batches):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, content in batches.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


@pytest.fixture
def fashion(server, monkeypatch):
    """Seven images of 3 x 4 pixels for training and two for testing."""
    rng = np.random.default_rng(0)
    parts = {}
    for part, count in (("train", 7), ("t10k", 2)):
        parts[part] = (
            rng.integers(0, 256, (count, 3, 4), np.uint8),
            rng.integers(0, 10, count, np.uint8),
        )
    sources = {
        f"{part}-{kind}": serve(server, f"{part}-{kind}.gz", idx(array))
        for part, arrays in parts.items()
        for kind, array in zip(("images", "labels"), arrays, strict=True)
    }
    monkeypatch.setattr(data, "FASHION_MNIST", sources)
    return parts


@pytest.fixture
def cifar(server, monkeypatch):
    rng = np.random.default_rng(1)
    names = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    records = {name: rng.integers(0, 256, (2, 3073), np.uint8) for name in names}
    for batch in records.values():
        batch[:, 0] %= 10
    content = cifar_archive({name: batch.tobytes() for name, batch in records.items()})
    monkeypatch.setattr(data, "CIFAR10", serve(server, "cifar.tar.gz", content))
    return records


def grey(images):
    """Back to the bytes: the inverse of the scaling to [-1, 1]."""
    return np.rint((images + 1) / 2 * 255).astype(np.uint8)


def test_digits_are_scikit_learns():
    digits = data.digits()
    scans = load_digits()
    assert digits.images.shape == (1797, 1, 8, 8)
    # 0, 1, ..., 16 become multiples of 1/8, exact in float32
    np.testing.assert_array_equal(digits.images[:, 0], scans.images / 8 - 1)
    np.testing.assert_array_equal(digits.labels, scans.target)
    assert digits.cell == 1 / 8
    assert (digits.images.min(), digits.images.max()) == (-1, 1)


@pytest.mark.parametrize("test, part", [(False, "train"), (True, "t10k")])
def test_fashion_mnist(fashion, server, tmp_path, test, part):
    images, labels = fashion[part]
    loaded = data.fashion_mnist(tmp_path, test=test)
    assert loaded.images.dtype == np.float32
    # Both steps of k * 2/255 - 1 are rounded to float32, whose half unit is 6e-8.
    np.testing.assert_allclose(loaded.images[:, 0], images / 127.5 - 1, atol=2.5e-7)
    np.testing.assert_array_equal(grey(loaded.images[:, 0]), images)
    np.testing.assert_array_equal(loaded.labels, labels)
    assert loaded.cell == 2 / 255
    assert server.asked == [f"{part}-images.gz", f"{part}-labels.gz"]


def test_a_second_call_downloads_nothing(fashion, server, tmp_path):
    first = data.fashion_mnist(tmp_path)
    asked = list(server.asked)
    second = data.fashion_mnist(tmp_path)
    assert server.asked == asked
    np.testing.assert_array_equal(first.images, second.images)


@pytest.mark.parametrize("test", [False, True])
def test_cifar10(cifar, tmp_path, test):
    loaded = data.cifar10(tmp_path, test=test)
    names = ["test_batch.bin"] if test else [f"data_batch_{i}.bin" for i in range(1, 6)]
    records = np.concatenate([cifar[name] for name in names])
    np.testing.assert_array_equal(loaded.labels, records[:, 0])
    pixels = grey(loaded.images)
    # Record 0, read by hand: red comes first, row after row, then green, then blue.
    assert pixels[0, 0, 0, 5] == records[0, 1 + 5]
    assert pixels[0, 0, 2, 0] == records[0, 1 + 64]
    assert pixels[0, 1, 0, 0] == records[0, 1 + 1024]
    assert pixels[0, 2, 31, 31] == records[0, 3072]
    np.testing.assert_array_equal(pixels.reshape(len(records), -1), records[:, 1:])


def test_an_interrupted_download_starts_afresh(fashion, server, tmp_path):
    server.cut.add("train-images.gz")
    with pytest.raises(OSError, match="train-images.gz could not be downloaded.*nothing was kept"):
        data.fashion_mnist(tmp_path)
    assert list(tmp_path.iterdir()) == []
    images, _ = fashion["train"]
    np.testing.assert_array_equal(grey(data.fashion_mnist(tmp_path).images[:, 0]), images)


def test_a_damaged_file_in_the_cache_is_fetched_again(fashion, tmp_path):
    data.fashion_mnist(tmp_path)
    path = tmp_path / "train-images.gz"
    path.write_bytes(path.read_bytes()[:-3])
    images, _ = fashion["train"]
    np.testing.assert_array_equal(grey(data.fashion_mnist(tmp_path).images[:, 0]), images)


def test_a_wrong_checksum_is_an_error(fashion, server, tmp_path):
    good = data.FASHION_MNIST["train-images"]
    data.FASHION_MNIST["train-images"] = good._replace(sha256="0" * 64)
    with pytest.raises(ValueError, match="does not match the known hash"):
        data.fashion_mnist(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_server_without_the_file(server, tmp_path):
    missing = serve(server, "here.gz", b"")._replace(
        url=f"http://127.0.0.1:{server.server_address[1]}/gone.gz"
    )
    with pytest.raises(OSError, match="gone.gz could not be downloaded.*404"):
        data.fetch(missing, tmp_path)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"PK\3\4 something else", "is not an IDX file"),
        (bytes([0, 0, 13, 1]) + struct.pack(">I", 1) + b"\0" * 4, "is not an IDX file"),
        (bytes([0, 0, 8, 3]) + struct.pack(">I", 5), "is not an IDX file"),
        (bytes([0, 0, 8]), "is not an IDX file"),
        (bytes([0, 0, 8, 1]) + struct.pack(">I", 5) + b"1234", r"promises shape \(5,\).*holds 4"),
    ],
    ids=["foreign", "floats", "short header", "three bytes", "short"],
)
def test_bad_idx(tmp_path, content, message):
    path = tmp_path / "file.gz"
    path.write_bytes(gzip.compress(content))
    with pytest.raises(ValueError, match=message):
        data.read_idx(path)


@pytest.mark.parametrize(
    "batch, message",
    [
        (None, "has no data_batch_1.bin, it has"),
        (b"", "is not made of records"),
        (b"\1" * 3072, "is not made of records"),
        (b"\12" + b"\0" * 3072, "is not made of records"),
    ],
    ids=["missing", "empty", "short", "class 10"],
)
def test_bad_cifar10(tmp_path, batch, message):
    path = tmp_path / "cifar.tar.gz"
    path.write_bytes(
        cifar_archive(
            {"other.bin": b""} | ({"data_batch_1.bin": batch} if batch is not None else {})
        )
    )
    with pytest.raises(ValueError, match=message):
        data.read_cifar10(path, ["data_batch_1.bin"])


DAMAGES = {
    "empty": lambda whole: b"",
    "text": lambda whole: b"<html>not found</html>" * 40,
    "cut": lambda whole: whole[: len(whole) // 2],
    "short of its end": lambda whole: whole[:-6],
    "turned": lambda whole: bytes([*whole[:200], whole[200] ^ 255, *whole[201:]]),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_archive_is_named(tmp_path, damage):
    noise = np.random.default_rng(0).integers(0, 256, (20, 3073), np.uint8)  # does not compress
    noise[:, 0] %= 10
    archive, array = tmp_path / "cifar.tar.gz", tmp_path / "images.gz"
    content = cifar_archive({"data_batch_1.bin": noise.tobytes(), "test_batch.bin": b"\0" * 3073})
    archive.write_bytes(DAMAGES[damage](content))
    array.write_bytes(DAMAGES[damage](idx(noise)))
    with pytest.raises(ValueError, match="images.gz is (damaged|not an IDX)"):
        data.read_idx(array)
    with pytest.raises(ValueError, match="cifar.tar.gz is (damaged|no tar archive)"):
        data.read_cifar10(archive, ["data_batch_1.bin", "test_batch.bin"])


def test_images_and_labels_must_fit(fashion, server, tmp_path):
    labels = np.zeros(3, np.uint8)
    data.FASHION_MNIST["train-labels"] = serve(server, "train-labels.gz", idx(labels))
    with pytest.raises(ValueError, match=r"\(7, 3, 4\) and \(3,\)"):
        data.fashion_mnist(tmp_path)


def test_addresses_and_checksums_are_those_of_the_data_sets():
    """The checksums stand in many public programs; each is held to a checksum of its digits."""
    known = {
        "train-images-idx3-ubyte.gz": 1910781375,
        "train-labels-idx1-ubyte.gz": 1532305275,
        "t10k-images-idx3-ubyte.gz": 1780630697,
        "t10k-labels-idx1-ubyte.gz": 1324495039,
        "cifar-10-binary.tar.gz": 2787724925,
    }
    sources = (*data.FASHION_MNIST.values(), data.CIFAR10)
    found = {s.url.rsplit("/", 1)[-1]: zlib.crc32(s.sha256.encode()) for s in sources}
    assert found == known
    assert all(source.url.startswith("http") and len(source.sha256) == 64 for source in sources)


# Your own pictures


def saved(folder, pictures):
    """Grey or RGB levels written as PNG files of these names."""
    for name, levels in pictures.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(levels, np.uint8)).save(folder / name)


def test_a_folder_of_pictures(tmp_path):
    """Subfolders are classes in the order of their names; grey stays grey, to the bit."""
    rng = np.random.default_rng(0)
    levels = rng.integers(0, 256, (3, 5, 4))
    saved(tmp_path, {"b/1.png": levels[1], "a/2.PNG": levels[0], "b/3.png": levels[2]})
    (tmp_path / "a" / "notes.txt").write_text("no picture")
    images = data.from_folder(tmp_path)
    np.testing.assert_allclose(images.images[:, 0], levels / 127.5 - 1, atol=1e-6)
    assert images.labels.tolist() == [0, 1, 1] and images.cell == 2 / 255
    saved(tmp_path, {"b/4.png": np.stack([levels[0]] * 3, axis=-1)})  # one in colour: all are
    colour = data.from_folder(tmp_path).images
    np.testing.assert_allclose(
        colour[[0, 3]], levels[[0, 0], None] / 127.5 + np.zeros((3, 1, 1)) - 1, atol=1e-6
    )


def test_pictures_are_cut_to_their_middle_square(tmp_path):
    """4 x 16 and 16 x 4: the ends go, and a flat middle stays what it was, at any size."""
    row = np.array([255, 255, *12 * [50], 0, 0])  # wide enough for Pillow's filter
    saved(tmp_path, {"a.png": np.tile(row, (4, 1)), "b.png": np.tile(row, (4, 1)).T})
    images = data.from_folder(tmp_path, 2).images
    np.testing.assert_allclose(images, np.full((2, 1, 2, 2), 50 / 127.5 - 1), atol=1e-6)


def test_images_in_an_npz_file(tmp_path):
    levels = np.random.default_rng(0).integers(0, 256, (3, 3, 2, 5)).astype(np.uint8)
    np.savez(tmp_path / "own.npz", images=levels, labels=[2, 0, 2])
    images = data.from_npz(tmp_path / "own.npz")
    np.testing.assert_allclose(images.images, levels / 127.5 - 1, atol=1e-6)
    assert images.labels.tolist() == [2, 0, 2]
    np.savez(tmp_path / "own.npz", images=levels)
    assert data.from_npz(tmp_path / "own.npz").labels.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    "arrays, message",
    [
        ({"x": np.zeros(3)}, r"got arrays \['x'\]"),
        ({"images": np.zeros((3, 1, 2, 2))}, r"images must be uint8 .* got float64 \(3, 1, 2, 2\)"),
        ({"images": np.zeros((3, 2, 2), np.uint8)}, r"got uint8 \(3, 2, 2\)"),
        (
            {"images": np.zeros((3, 1, 2, 2), np.uint8), "labels": [0, 1]},
            "labels must be 3 integers",
        ),
        ({"images": np.zeros((1, 1, 2, 2), np.uint8), "labels": [-1]}, "labels must be 1 integers"),
    ],
)
def test_other_arrays_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "own.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        data.from_npz(tmp_path / "own.npz")


def test_folders_that_are_no_data_are_refused(tmp_path):
    with pytest.raises(ValueError, match="has no pictures in it: looked for .png"):
        data.from_folder(tmp_path)
    saved(tmp_path, {"a.png": np.zeros((2, 3)), "b.png": np.zeros((2, 2))})
    with pytest.raises(ValueError, match=r"a.png is 3 x 2, b.png is 2 x 2: give a size to cut"):
        data.from_folder(tmp_path)
    Image.fromarray(np.zeros((2, 2), np.uint16)).save(tmp_path / "c.png")
    with pytest.raises(ValueError, match="c.png has more than 8 bits"):
        data.from_folder(tmp_path)
    (tmp_path / "c.png").write_bytes(b"no picture")
    with pytest.raises(OSError, match="c.png"):
        data.from_folder(tmp_path)
