"""A bounded cache of files that are expensive to make, in the user's cache folder; `user_cache` opens it.

An entry is found by a key, the sha256 of everything that it depends on, so it never has to be brought up to date. One
that this user did not write, or that others could have changed, is not read; one that is damaged is made anew. The
checksum is against damage only: a program that runs as this user can write what it likes, here as anywhere else.

Nothing that goes wrong in here stops the caller. What it means, and why, is logged once.
"""

from __future__ import annotations

import functools
import io
import logging
import mmap
import os
import re
import stat
import struct
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

from .errors import OutputError
from .files import lock

log = logging.getLogger(__name__)

VARIABLE = "CKD_FAST_CACHE"
LIMIT = 2 * 10**9
MAGIC = b"ckd_fast cache 1"
HEADER = struct.Struct("<16s32s256sQI")  # magic and format, key, what it is (UTF-8), length and CRC-32 of the data
DATA = 4096  # where the data begin: at a page, so that what is aligned in the data is so in memory
CHUNK = 1 << 22
MOST_TRIES = 3  # to make a file that nobody sweeps
MOST_THREADS = 4  # more would wait for memory
NAME = re.compile(r"[0-9a-f]{64}\.entry")
UNFINISHED = ".entry.part"
LEFTOVER = re.compile(rf"[0-9a-f]{{8}}-\w+{re.escape(UNFINISHED)}")
CONSEQUENCE = f"every start takes as long as the first; {VARIABLE} names another folder, or switches it off"
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True)
class Entry:
    """A file of the cache, as its name and header describe it; nothing of it has been checked."""

    path: Path
    about: str
    size: int  # of the file, in bytes
    used: float  # when it was last read or written, in seconds since 1970


class UntrustedError(Exception):
    """An entry or a folder that is not read; the message says why."""


class Cache:
    """Entries by key in one folder, the least recently used of which give way to new ones.

    Args:
        folder: created when something is stored; None: nothing is kept.
        limit: of all entries together, in bytes.
    """

    def __init__(self, folder: Path | None, limit: int = LIMIT) -> None:
        self.folder = folder
        self.limit = limit
        self._said: set[str] = set()
        self._writable = True  # until storing fails: a full disk is not filled again and again

    def load(self, key: str) -> memoryview | None:
        """The data stored under a key, as a private mapping of the file, or None."""
        if self.folder is None or not self._usable(self.folder):
            return None
        path = _path(self.folder, key)
        try:
            data = _read(path, bytes.fromhex(key))
        except FileNotFoundError:
            return None
        except UntrustedError as error:
            self._say(f"{path} {error}: it is made anew")
            with suppress(OSError):
                if _is_mine(path.lstat()):
                    path.unlink()
            return None
        except OSError as error:
            self._say(f"{path} cannot be read ({_reason(error)}): it is made anew")
            return None
        self._touch(path)
        return data

    def store(self, key: str, about: str, write: Callable[[io.BytesIO], object]) -> None:
        """Keep what `write` writes into the file that it is given.

        Args:
            key: see the module.
            about: what it is, for people.
            write: may seek. What goes wrong with the file is not its concern.
        """
        if self.folder is None or not self._writable:
            return
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self._usable(self.folder):
                _sweep(self.folder)
                self._store(_path(self.folder, key), bytes.fromhex(key), about, write)
        except OSError as error:
            self._writable = False
            self._say(f"the cache {self.folder} cannot be written ({_reason(error)}): {CONSEQUENCE}")

    def _usable(self, folder: Path) -> bool:
        """Whether the folder is there and nobody else can change it."""
        obstacle = self.obstacle()
        if obstacle:
            self._say(f"the cache {folder} is not used ({obstacle}): {CONSEQUENCE}")
        return not obstacle and folder.exists()

    def obstacle(self) -> str:
        """Why the folder is not used; empty if it is, or will be once something is stored."""
        if self.folder is None:
            return "switched off"
        try:
            _check_folder(self.folder)
        except FileNotFoundError:
            return ""
        except (OSError, UntrustedError) as error:
            return _reason(error)
        return ""

    def _store(self, path: Path, key: bytes, about: str, write: Callable[[io.BytesIO], object]) -> None:
        with _temporary(path) as (file, temporary):
            body = _Body(file, self.limit - DATA)
            try:
                write(body)
            except Exception:
                if body.failure is None:
                    raise
            if body.failure is not None:
                raise body.failure
            if body.full:
                self._say(f"{about}: larger than the limit of the cache, {self.limit / 1e9:g} GB, so it is not kept")
                return
            file.seek(DATA)
            # Read again, because the writer may have gone back; in chunks, because it is large and memory is full now.
            sums = [zlib.crc32(chunk) for chunk in iter(partial(file.read, CHUNK), b"")]
            size = file.tell()
            head = HEADER.pack(MAGIC, key, _cut(about), size - DATA, _together(sums))
            file.seek(0)
            # Not synced: after a power failure the checksum tells, and syncing may take longer than compiling.
            file.write(head + zlib.crc32(head).to_bytes(4, "little"))
            file.flush()
            self._make_room(size, path)
            if sys.platform == "win32":
                file.close()  # an open file cannot be moved there
            temporary.replace(path)

    def _make_room(self, size: int, path: Path) -> None:
        others = [entry for entry in self.entries() if entry.path != path]
        total = sum(entry.size for entry in others)
        for entry in others:
            if total + size <= self.limit:
                break
            # Other processes make room too, and Windows keeps files that are mapped.
            with suppress(OSError):
                entry.path.unlink()
                total -= entry.size

    def entries(self) -> list[Entry]:
        """What is in the folder, the least recently used first."""
        found = []
        for path in self._files():
            with suppress(OSError):
                state = path.lstat()
                about = _about(path) if stat.S_ISREG(state.st_mode) else "not a file"
                found.append(Entry(path, about, state.st_size, state.st_mtime))
        return sorted(found, key=lambda entry: entry.used)

    def clear(self) -> list[Entry]:
        """Remove all entries, whatever is in them; other files stay.

        Raises:
            OutputError: one cannot be removed.
        """
        entries = self.entries()
        for entry in entries:
            try:
                entry.path.unlink(missing_ok=True)
            except OSError as error:
                raise OutputError(f"{entry.path}: cannot be removed ({_reason(error)})") from error
        if self.folder is not None and self.folder.is_dir():
            _sweep(self.folder)
        return entries

    def _files(self) -> list[Path]:
        if self.folder is None:
            return []
        try:
            return [path for path in self.folder.iterdir() if NAME.fullmatch(path.name)]
        except (FileNotFoundError, NotADirectoryError):
            return []  # nothing was stored yet, or nothing ever can be

    def _touch(self, path: Path) -> None:
        """Make it the most recently used, even if the clock went backwards."""
        with suppress(OSError):  # a folder that may only be read
            newest = max((other.lstat().st_mtime_ns for other in self._files() if other != path), default=0)
            now = max(time.time_ns(), newest + 1)
            os.utime(path, ns=(now, now))

    def _say(self, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            log.warning("%s", message)


def user_cache() -> Cache:
    """The cache of the user who runs this, in the folder that docs/environment.md describes."""
    named = os.environ.get(VARIABLE)
    if named is not None:
        return _shared(None if named.strip().lower() in ("", "off") else _expanded(named).absolute())
    try:
        return _shared(_platform_folder() / "ckd_fast")
    except RuntimeError:  # from `Path.home`
        cache = _shared(None)
        cache._say(f"no home folder, so nothing is cached: name a folder in {VARIABLE}")  # noqa: SLF001 - of this module
        return cache


def _expanded(named: str) -> Path:
    try:
        return Path(named).expanduser()
    except RuntimeError:  # no home folder
        return Path(named)


@functools.cache
def _shared(folder: Path | None) -> Cache:
    """One per folder and process, so that all engines together say once what is wrong with it."""
    return Cache(folder)


def _platform_folder() -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return named if named.is_absolute() else Path.home() / ".cache"  # XDG: a relative path is to be ignored


def _path(folder: Path, key: str) -> Path:
    path = folder / f"{key}.entry"
    if not NAME.fullmatch(path.name):
        raise ValueError(f"{key!r} is no key: expected a sha256 in hexadecimal")
    return path


def checksum(data: memoryview) -> int:
    """CRC-32 of the CRC-32s of chunks, which several threads compute: of what the standard library has, it is the
    fastest, and there is no one to hide from (see the module).
    """
    chunks = [data[start : start + CHUNK] for start in range(0, len(data), CHUNK)]
    with ThreadPoolExecutor(min(len(chunks), os.cpu_count() or 1, MOST_THREADS) or 1) as threads:
        return _together(threads.map(zlib.crc32, chunks))


def _together(sums: Iterable[int]) -> int:
    return zlib.crc32(b"".join(each.to_bytes(4, "little") for each in sums))


def _read(path: Path, key: bytes) -> memoryview:
    """The data of an entry, as a mapping whose changes stay in this process."""
    if not stat.S_ISREG(path.lstat().st_mode):
        raise UntrustedError("is not a regular file")
    # Between the check and here it may have become a link or a pipe: follow none, wait for none.
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    with open(os.open(path, flags), "rb", buffering=0) as file:  # noqa: PTH123 - a descriptor
        state = os.fstat(file.fileno())
        if not stat.S_ISREG(state.st_mode):
            raise UntrustedError("is not a regular file")
        _check_owner(state)
        head = file.read(HEADER.size)
        sealed = file.read(4)
        if len(sealed) < 4 or zlib.crc32(head) != int.from_bytes(sealed, "little"):
            raise UntrustedError("is damaged: its header is none of ours")
        magic, stored_key, _, length, expected = HEADER.unpack(head)
        if magic != MAGIC or stored_key != key:
            raise UntrustedError("is another entry")
        if state.st_size != DATA + length:
            raise UntrustedError(f"is damaged: {state.st_size} bytes instead of {DATA + length}")
        # Entries are replaced or removed, never changed: nobody shortens a file that is mapped.
        data = memoryview(mmap.mmap(file.fileno(), state.st_size, access=mmap.ACCESS_COPY))[DATA:]
    if checksum(data) != expected:
        raise UntrustedError("is damaged: its checksum is wrong")
    return data


def _check_folder(folder: Path) -> None:
    state = folder.stat()  # it may be a link, made by someone who may write where it is
    if not stat.S_ISDIR(state.st_mode):
        raise UntrustedError("is not a folder")
    _check_owner(state)


def _check_owner(state: os.stat_result) -> None:
    if not _is_mine(state):
        raise UntrustedError("belongs to another user")
    if sys.platform != "win32" and state.st_mode & OTHERS_WRITE:
        raise UntrustedError("may be written by other users: chmod go-w")


def _reason(error: OSError | UntrustedError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _is_mine(state: os.stat_result) -> bool:
    return sys.platform == "win32" or state.st_uid == os.geteuid()


def _about(path: Path) -> str:
    """What a header says that the entry is; anyone may have written it, so only its printable characters are shown."""
    with path.open("rb") as file:
        head = file.read(HEADER.size)
    if not head.startswith(MAGIC) or len(head) < HEADER.size:
        return "damaged"
    text: str = HEADER.unpack(head)[2].rstrip(b"\0").decode("utf-8", "replace")
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def _cut(about: str) -> bytes:
    """As much of a text as the header has room for."""
    return about.encode("utf-8", "replace")[:256].decode("utf-8", "ignore").encode()


@contextmanager
def _temporary(path: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """A new file beside an entry, gone afterwards unless it was moved. Its lock says that someone writes it."""
    for last in (False,) * (MOST_TRIES - 1) + (True,):
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f"{path.stem[:8]}-", suffix=UNFINISHED)
        temporary = Path(name)
        try:
            with open(handle, "w+b") as file:  # noqa: PTH123 - a descriptor
                lock(handle, wait=True)
                # 0: another process swept it between its creation and the lock. Some file systems always say 0, so the
                # last try goes on; if it was swept, it cannot be moved, which is an error like any other.
                if last or os.fstat(handle).st_nlink:
                    file.truncate(DATA)
                    file.seek(DATA)
                    yield file, temporary
                    return
        finally:
            temporary.unlink(missing_ok=True)


def _sweep(folder: Path) -> None:
    """Remove what killed processes left unfinished."""
    for path in folder.iterdir():
        if not LEFTOVER.fullmatch(path.name):
            continue
        with suppress(OSError):
            if sys.platform == "win32":
                path.unlink()  # impossible while someone has it open
                continue
            handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
            try:
                lock(handle, wait=False)
                path.unlink()
            finally:
                os.close(handle)


class _Body(io.BytesIO):
    """The part of a file behind its header, for a writer such as OpenVINO, which writes to an io.BytesIO and to
    nothing else. OpenVINO also hides what is raised in here, so the first failure is kept.
    """

    def __init__(self, file: BinaryIO, limit: int) -> None:
        super().__init__()
        self._file = file
        self._limit = limit
        self.full = False
        self.failure: BaseException | None = None

    def write(self, data: bytes) -> int:  # type: ignore[override]
        if self.failure is None:
            try:
                self.full = self.full or self.tell() + len(data) > self._limit
                return len(data) if self.full else self._file.write(data)
            except BaseException as failure:
                self.failure = failure
                raise
        raise OSError("an earlier write failed")

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset + (DATA if whence == os.SEEK_SET else 0), whence) - DATA

    def tell(self) -> int:
        return self._file.tell() - DATA

    def flush(self) -> None:
        self._file.flush()
