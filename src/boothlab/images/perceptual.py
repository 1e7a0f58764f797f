"""Perceptual hashes of pictures and the search for near ones among very many, without comparing each with each."""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from PIL import Image

from boothlab.errors import UserError

BITS = 64
SIDE = 64
"""Pixels of the shorter side that a picture needs for its hash, which is made from 32 × 32."""
_BLOCK = 1024

Hashes = npt.NDArray[np.uint64]
Indices = npt.NDArray[np.int64]


def require_hashing() -> None:
    """Raise UserError if the library behind `perceptual_hash` is missing."""
    try:
        import imagehash  # noqa: F401
    except ImportError as error:
        raise UserError(
            "near duplicates are found with ImageHash, which is not installed; "
            "pip install 'boothlab[caption]', or leave them out with audit.near_distance=null"
        ) from error


def perceptual_hash(image: Image.Image) -> int:
    """The pHash (DCT of 32 × 32 grey pixels, its lowest 8 × 8 against their median) as 64 bits, first bit highest."""
    import imagehash

    bits = imagehash.phash(image).hash
    return int.from_bytes(np.packbits(bits.flatten()).tobytes(), "big")


def earliest_near(hashes: Hashes, distance: int) -> Indices:
    """For each of n hashes the smallest index whose hash differs in at most `distance` bits; often its own.

    Hashes that near agree in one of `distance` + 1 bands of bits at least (pigeonhole), so only those that share a
    band are compared, in blocks; equal ones count once. Raises ValueError for a distance outside 0..63.
    """
    if not 0 <= distance < BITS:
        raise ValueError(f"the distance must be in 0..{BITS - 1}, got {distance}")
    if len(hashes) == 0:
        return np.empty(0, dtype=np.int64)
    unique, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    earliest = first.astype(np.int64)
    for shift, width in _bands(distance + 1):
        band = (unique >> np.uint64(shift)) & np.uint64((1 << width) - 1)
        order = np.argsort(band, kind="stable")
        ends = np.flatnonzero(np.diff(band[order])) + 1
        starts = np.concatenate([[0], ends])
        sizes = np.diff(np.concatenate([starts, [len(order)]]))
        for start, size in zip(starts[sizes > 1].tolist(), sizes[sizes > 1].tolist(), strict=True):
            members = order[start : start + size]
            _compare(unique[members], first[members], members, earliest, distance)
    found: Indices = earliest[inverse]
    return found


def _compare(hashes: Hashes, first: Indices, members: Indices, earliest: Indices, distance: int) -> None:
    """Lower `earliest` of each member to the first index of any member that is near."""
    for start in range(0, len(hashes), _BLOCK):
        rows = slice(start, start + _BLOCK)
        for left in range(0, len(hashes), _BLOCK):
            columns = slice(left, left + _BLOCK)
            near = np.bitwise_count(hashes[rows, None] ^ hashes[None, columns]) <= distance
            best = np.where(near, first[None, columns], np.iinfo(np.int64).max).min(axis=1)
            earliest[members[rows]] = np.minimum(earliest[members[rows]], best)


def _bands(count: int) -> Iterator[tuple[int, int]]:
    """`count` bands that cover the 64 bits: the lowest bit and the width of each."""
    edges = [BITS * index // count for index in range(count + 1)]
    for low, high in pairwise(edges):
        yield low, high - low
