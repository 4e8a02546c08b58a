"""Files: errors that name them, overwriting and atomic writing, lists of images."""

from __future__ import annotations

import logging
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import InputError, OutputError

log = logging.getLogger(__name__)
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".pgm", ".ppm"})


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn a failure to read into an InputError that names the path."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failure to write into an OutputError that names the path."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error})") from error


def make_folder(path: Path) -> None:
    """Create a folder and those above it; it may exist."""
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)


def refuse_overwrite(paths: Iterable[Path], *, force: bool) -> None:
    """Raise if one of these files exists, unless `force`. All are in one folder."""
    present = [path for path in paths if path.exists()]
    if present and not force:
        names = ", ".join(path.name for path in present)
        exist = "exists" if len(present) == 1 else "exist"
        where = f"{present[0].parent}: " if present[0].parent != Path() else ""
        raise OutputError(f"{where}{names} {exist}; write elsewhere or use --force")


def refuse_place(path: Path) -> None:
    """Raise if a file cannot be written here, before much work is done for it."""
    if path.is_dir():
        raise OutputError(f"{path}: a directory; expected the name of a file to write")
    if not path.parent.is_dir():
        raise OutputError(f"{path}: the folder {path.parent} does not exist")


@contextmanager
def atomically(path: Path) -> Iterator[Path]:
    """A temporary file to write, which replaces `path` when the block ends and vanishes when it fails.

    Readers see the old file or the new one, never half of it. A link stays and its target is replaced.
    """
    with writing(path):
        path = path.resolve()
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            mask = os.umask(0)
            os.umask(mask)
            temporary.chmod(0o666 & ~mask)  # mkstemp makes files that nobody else may read
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def write_atomically(path: Path, text: str) -> None:
    """Replace a text file as a whole; write into it if it is a pipe or a device. Creates its folder."""
    with writing(path):
        if path.exists() and not path.is_file():
            path.write_text(text, encoding="utf-8", errors="backslashreplace")
            return
        path.resolve().parent.mkdir(parents=True, exist_ok=True)
    with atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def natural_key(name: str) -> list[tuple[int, int | str]]:
    """Sort key that puts 2.jpg before 10.jpg."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", name) if part]


def list_images(folder: Path) -> list[Path]:
    """The images of a folder in natural order; at least one."""
    with reading(folder):
        # Without hidden files: some systems leave companions like ._0001.jpg that are no images.
        found = [
            path
            for path in folder.iterdir()
            if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()
        ]
    if not found:
        raise InputError(f"{folder}: no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return sorted(found, key=lambda path: natural_key(path.name))


def lock(handle: int, *, wait: bool) -> None:
    """Lock an open file until it is closed; if another process has, wait or raise BlockingIOError.

    On Windows this does nothing: a file that is open cannot be deleted there, which is enough for the cache.
    """
    if sys.platform != "win32":
        import fcntl

        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise
        except OSError as error:
            if not wait:  # a network file system without locks: whatever is there may be being written
                raise
            log.debug("%s: no lock (%s)", handle, error)
