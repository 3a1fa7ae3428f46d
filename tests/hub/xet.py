"""The reading half of Xet storage, as small as hf_xet accepts: a file is xorbs of uncompressed chunks.

Format: huggingface.co/docs/xet (reconstruction API; a chunk is an 8-byte header and its data). The hashes
here are names only: a real Xet hash is a Merkle tree's, which this stand-in does not compute.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHUNK = 64 * 1024
CHUNKS = 256  # a xorb
XORB = CHUNK * CHUNKS


def name(sha256: str, number: int) -> str:
    """The xorb's name."""
    return hashlib.sha256(f"{sha256} {number}".encode()).hexdigest()


def reconstruction(
    sha256: str, size: int, base: str, start: int = 0, stop: int | None = None
) -> dict[str, Any]:
    """Which chunks make up bytes ``start`` to ``stop`` of a file, and where they are."""
    stop = size if stop is None else min(stop, size)
    terms: list[dict[str, Any]] = []
    places: dict[str, list[dict[str, Any]]] = {}
    for number in range(start // XORB, (stop - 1) // XORB + 1):
        begin = number * XORB
        first = max(start - begin, 0) // CHUNK
        length = min(stop, begin + XORB, size) - begin
        last = -(-length // CHUNK)
        unpacked = min(begin + last * CHUNK, size) - begin - first * CHUNK
        xorb, span = name(sha256, number), {"start": first, "end": last}
        packed = first * (CHUNK + 8)
        where = {"start": packed, "end": packed + unpacked + 8 * (last - first) - 1}
        terms.append({"hash": xorb, "unpacked_length": unpacked, "range": span})
        url = f"{base}/xorbs/{sha256}/{number}"
        places[xorb] = [{"range": span, "url": url, "url_range": where}]
    return {"offset_into_first_range": start % CHUNK, "terms": terms, "fetch_info": places}


def xorb(source: Path | bytes, number: int) -> bytes:
    """A xorb's bytes."""
    return b"".join(_chunks(source, number))


def _chunks(source: Path | bytes, number: int) -> Iterator[bytes]:
    if isinstance(source, bytes):
        data = source[number * XORB : (number + 1) * XORB]
    else:
        with source.open("rb") as f:
            f.seek(number * XORB)
            data = f.read(XORB)
    for at in range(0, len(data), CHUNK):
        piece = data[at : at + CHUNK]
        length = len(piece).to_bytes(3, "little")
        # version 0, packed length, no compression, unpacked length
        yield b"\0" + length + b"\0" + length + piece
