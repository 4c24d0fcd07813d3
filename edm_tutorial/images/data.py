r"""Data sets of small images with labels, read into memory once as floats in $[-1, 1]$.

A grey level $k \in \{0, \dots, K\}$ becomes $2k/K - 1$. Your own pictures come from a folder or an
`.npz` file. Downloads are kept in a cache and
compared with a checksum before they are used. Every format is parsed here, byte by byte:
nothing that is downloaded is ever unpickled or run.
"""

import gzip
import io
import math
import struct
import tarfile
import zlib
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Int32, UInt8

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


class Images(NamedTuple):
    """Images in [-1, 1], channels first, and the class of each, from 0.

    `cell` is the distance of two grey levels, the `scale` of `bits_per_dim`.
    """

    images: Float32[np.ndarray, "n channels height width"]
    labels: Int32[np.ndarray, " n"]
    cell: float


class Source(NamedTuple):
    """A file to download, and the SHA-256 of its bytes."""

    url: str
    sha256: str


_FASHION = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
_SUMS = {
    "train-images-idx3": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
    "train-labels-idx1": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
    "t10k-images-idx3": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
    "t10k-labels-idx1": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
}
FASHION_MNIST = {
    name[:-5]: Source(f"{_FASHION}/{name}-ubyte.gz", sha256) for name, sha256 in _SUMS.items()
}
CIFAR10 = Source(  # the binary version: its Python version is a pickle, which could run code
    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
)


def digits() -> Images:
    """Handwritten digits that come with scikit-learn: 1,797 of 1 x 8 x 8, 17 grey levels."""
    from sklearn.datasets import load_digits  # needed here only

    scans: Any = load_digits()
    return _images(scans.images.astype(np.uint8)[:, None], scans.target, levels=17)


def fashion_mnist(cache: str | PathLike | None = None, *, test: bool = False) -> Images:
    """Pictures of clothes: 60,000, or the 10,000 of the test set, of 1 x 28 x 28, 10 classes.

    Downloads about 26 MB (test set: 4 MB) on first use, into `cache` or the user's cache folder.

    Raises: OSError if the download failed, and nothing is left behind; ValueError for a wrong
    checksum, or bytes that are not in the IDX format.
    """
    part = "t10k" if test else "train"
    images = read_idx(fetch(FASHION_MNIST[f"{part}-images"], cache))
    labels = read_idx(fetch(FASHION_MNIST[f"{part}-labels"], cache))
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        needed = "images of shape (n, height, width) and n labels"
        raise ValueError(f"Fashion-MNIST needs {needed}, got {images.shape} and {labels.shape}")
    return _images(images[:, None], labels, levels=256)


def cifar10(cache: str | PathLike | None = None, *, test: bool = False) -> Images:
    """Photographs: 50,000, or the 10,000 of the test set, of 3 x 32 x 32, 10 classes.

    Downloads 162 MB on first use, into `cache` or the user's cache folder. The training images
    take 614 MB of memory.

    Raises: OSError if the download failed, and nothing is left behind; ValueError for a wrong
    checksum, or bytes that are not in CIFAR-10's binary format.
    """
    names = ["test_batch.bin"] if test else [f"data_batch_{i}.bin" for i in range(1, 6)]
    images, labels = read_cifar10(fetch(CIFAR10, cache), names)
    return _images(images, labels, levels=256)


def from_folder(path: str | PathLike, size: int | None = None) -> Images:
    """Pictures in a folder, 8 bits a channel; its subfolders, if any, are their classes.

    Classes are numbered in the order of the folders' names. The images are grey if all pictures
    are, and RGB otherwise. With `size` the middle square of each is scaled to `size` x `size`;
    without, all must be of one size. All are held in memory, 4 bytes a number.

    Raises: ValueError for a folder without pictures, or with pictures of several sizes or more
    than 8 bits; OSError for a file that is no picture.
    """
    files = sorted(file for file in Path(path).rglob("*") if file.suffix.lower() in PICTURES)
    if not files:
        raise ValueError(f"{path} has no pictures in it: looked for {', '.join(PICTURES)}")
    pictures = [_read_picture(file, size) for file in files]
    sizes = {picture.size: file for file, picture in zip(files, pictures, strict=True)}
    if len(sizes) > 1:
        told = ", ".join(f"{file.name} is {w} x {h}" for (w, h), file in list(sizes.items())[:2])
        raise ValueError(f"pictures in {path} differ in size, {told}: give a size to cut them to")
    mode = "RGB" if any(picture.mode == "RGB" for picture in pictures) else "L"
    levels = np.stack([np.asarray(picture.convert(mode)) for picture in pictures])
    levels = levels[:, None] if mode == "L" else levels.transpose(0, 3, 1, 2)
    folders = sorted({file.parent for file in files})
    return _images(levels, np.array([folders.index(file.parent) for file in files]), levels=256)


def from_npz(path: str | PathLike) -> Images:
    """Images in an `.npz` file, an array `images`: uint8 of shape (n, channels, height, width).

    An array `labels` holds the class of each, integers from 0; without it all are of class 0.

    Raises: ValueError for arrays of other names, shapes or dtypes; OSError if there is no file.
    """
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    images, needed = arrays.get("images"), "uint8 of shape (n, 1 or 3, height, width)"
    if (
        images is None
        or images.dtype != np.uint8
        or images.ndim != 4
        or images.shape[1] not in (1, 3)
    ):
        got = f"arrays {sorted(arrays)}" if images is None else f"{images.dtype} {images.shape}"
        raise ValueError(f"{path}: images must be {needed}, got {got}")
    labels = arrays.get("labels", np.zeros(len(images), int))
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu" or labels.min() < 0:
        raise ValueError(f"{path}: labels must be {len(images)} integers from 0, got {labels}")
    return _images(images, labels, levels=256)


def fetch(source: Source, cache: str | PathLike | None = None) -> Path:
    """Path of `source` in the cache; it is downloaded if it is not there or damaged.

    The file gets its name only once it is complete and its checksum agrees.

    Raises: OSError if the download failed; ValueError for a wrong checksum.
    """
    import pooch  # needed here only; in a notebook its import warns about progress bars

    folder = Path(pooch.os_cache("edm-tutorial") if cache is None else cache)
    name = source.url.rsplit("/", 1)[-1]
    known = f"sha256:{source.sha256}"
    try:
        return Path(pooch.retrieve(source.url, known, fname=name, path=folder, progressbar=True))
    except OSError as error:
        raise OSError(
            f"{source.url} could not be downloaded, and nothing was kept of it: try again, or "
            f"put the file into {folder} by hand ({error})"
        ) from error


def read_idx(path: str | PathLike) -> UInt8[np.ndarray, "..."]:
    """Array in a gzipped IDX file of unsigned bytes, the format of MNIST.

    The file holds two zero bytes, the type (8 is unsigned bytes), the number of axes, the
    length of each axis as four bytes with the highest first, and then the numbers.

    Raises: ValueError for a damaged file, another format, or a length that does not fit.
    """
    content = _unpacked(path)
    if len(content) < 4 or content[:3] != b"\0\0\x08" or len(content) < 4 + 4 * content[3]:
        raise ValueError(f"{path} is not an IDX file of unsigned bytes: starts {content[:4]!r}")
    shape = struct.unpack_from(f">{content[3]}I", content, 4)
    numbers = np.frombuffer(content, np.uint8, offset=4 + 4 * len(shape))
    if len(numbers) != math.prod(shape):
        raise ValueError(f"{path} promises shape {shape} and holds {len(numbers)} numbers")
    return numbers.reshape(shape)


def read_cifar10(
    path: str | PathLike, names: list[str]
) -> tuple[UInt8[np.ndarray, "n 3 32 32"], UInt8[np.ndarray, " n"]]:
    """Images and labels of some batches in CIFAR-10's binary archive, read in memory.

    Each record is the label, one byte, and 3,072 bytes of 32 x 32 red, green and blue.

    Raises: ValueError for a damaged file, or a batch that is missing or not made of such records.
    """
    batches = []
    try:
        archive = tarfile.open(fileobj=io.BytesIO(_unpacked(path)))
    except tarfile.TarError as error:
        raise ValueError(f"{path} is no tar archive: {error}") from error
    with archive:
        members = {Path(member.name).name: member for member in archive if member.isfile()}
        for name in names:
            file = archive.extractfile(members[name]) if name in members else None
            if file is None:
                raise ValueError(f"{path} has no {name}, it has {sorted(members)}")
            batches.append(np.frombuffer(file.read(), np.uint8))
    size = 1 + 3 * 32 * 32
    for name, batch in zip(names, batches, strict=True):
        if len(batch) == 0 or len(batch) % size or batch[::size].max() > 9:
            raise ValueError(f"{name} in {path} is not made of records of {size} bytes, label 0-9")
    records = np.concatenate(batches).reshape(-1, size)
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0]


def _unpacked(path: str | PathLike) -> bytes:
    """Content of a gzip file, read to its end, where its checksum is."""
    try:
        with gzip.open(path) as file:
            return file.read()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged, or no gzip file: {error}") from error


def _read_picture(file: Path, size: int | None) -> Any:
    """A picture, upright, grey or RGB, cut to a square if a size is given."""
    from PIL import Image, ImageOps  # needed here only, and an extra

    with Image.open(file) as opened:
        if opened.mode.startswith(("I", "F")):
            raise ValueError(f"{file} has more than 8 bits a channel: convert it first")
        grey = opened.mode in ("1", "L", "LA")
        picture = ImageOps.exif_transpose(opened).convert("L" if grey else "RGB")
    return picture if size is None else ImageOps.fit(picture, (size, size))


def _images(grey: np.ndarray, labels: np.ndarray, levels: int) -> Images:
    cell = 2 / (levels - 1)
    images = grey.astype(np.float32)
    images *= np.float32(cell)  # in place: CIFAR-10 is large
    images -= 1
    return Images(images, labels.astype(np.int32), cell)
