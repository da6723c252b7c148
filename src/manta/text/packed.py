"""Packed files as streams: strict about what follows the last byte, bounded in memory and in how much comes out."""

import bz2
import lzma
import zlib
from collections.abc import Callable
from io import BufferedIOBase, RawIOBase
from typing import Any, Protocol

MEMORY = 256 << 20
"""Most memory, in bytes, that an `.xz` file may ask for its dictionary; `xz -9` takes 65 MiB."""
BOMB_SIZE, BOMB_RATIO = 64 << 20, 500
"""Bytes that a file may unpack to, whatever its own size, and from then on times its own size; text packs 3 to 50."""
_CHUNK = 64 << 10


class Unpacker(Protocol):
    """One packed stream, as `lzma` and `bz2` know it."""

    eof: bool
    unused_data: bytes
    needs_input: bool

    def decompress(self, data: bytes, max_length: int) -> bytes:
        """At most so many bytes of what the data unpacks to."""
        ...


class _Gunzip:
    """`zlib`'s unpacker in the shape of the others."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(wbits=31)

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    @property
    def unused_data(self) -> bytes:
        return self._zlib.unused_data

    @property
    def needs_input(self) -> bool:
        return not self._zlib.unconsumed_tail

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._zlib.decompress(self._zlib.unconsumed_tail + data, max_length)


PACKED: dict[str, Callable[[], Any]] = {
    ".xz": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MEMORY),
    ".gz": _Gunzip,
    ".bz2": bz2.BZ2Decompressor,
}
"""What unpacks one stream of a file, by the ending of its name."""


class Unpacked(RawIOBase):
    """What a packed file unpacks to: its streams one after the other.

    Python's own readers take bytes that begin no stream for the end of the file, so that a damaged second stream is
    lost without a word, and set no bound. Here both are errors.

    Args:
        packed: the file; closed with this one.
        unpacker: makes what unpacks one stream.
    """

    def __init__(self, packed: BufferedIOBase, unpacker: Callable[[], Unpacker]) -> None:
        self._packed, self._new = packed, unpacker
        self._stream = unpacker()
        self._ahead = b""
        self._taken = self._given = 0

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer; 0 at the end.

        Raises:
            EOFError: the file ends within a stream.
            ValueError: it unpacks to more than a text would.
            OSError, lzma.LZMAError, zlib.error: it is damaged.
        """
        while True:
            if self._stream.eof:
                self._ahead = self._stream.unused_data.lstrip(b"\0")
                while not self._ahead:  # zeros may follow a stream
                    if not (more := self._take()):
                        return 0
                    self._ahead = more.lstrip(b"\0")
                self._stream = self._new()
            asked = self._stream.needs_input
            data = (self._ahead or self._take()) if asked else b""
            self._ahead = b"" if asked else self._ahead
            if found := self._stream.decompress(data, len(buffer)):
                buffer[: len(found)] = found
                self._given += len(found)
                if self._given > max(BOMB_SIZE, BOMB_RATIO * self._taken):
                    raise ValueError(f"it unpacks to more than {BOMB_RATIO} times its size")
                return len(found)
            if asked and not data and not self._stream.eof:
                raise EOFError("it ends in the middle")

    def close(self) -> None:
        """Close the packed file, too."""
        self._packed.close()
        super().close()

    def _take(self) -> bytes:
        data = self._packed.read(_CHUNK)
        self._taken += len(data)
        return data
