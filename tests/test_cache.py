"""The cache serves what was stored, or nothing; whatever the folder holds, it does no harm."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support import ROOT

from ckd_fast import OutputError
from ckd_fast.cache import DATA, HEADER, Cache, _shared, checksum, user_cache

MINE = "mine, float32"


def key(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def content(name: str, size: int = 10_000) -> bytes:
    return hashlib.shake_256(name.encode()).digest(size)


def put(cache: Cache, name: str, size: int = 10_000) -> Path | None:
    """Store an entry; its file, if there is one then."""
    cache.store(key(name), MINE, lambda body: body.write(content(name, size)))
    assert cache.folder is not None
    path = cache.folder / f"{key(name)}.entry"
    return path if path.exists() else None


def stored(cache: Cache, name: str = "one") -> Path:
    path = put(cache, name)
    assert path is not None
    return path


def loaded(cache: Cache, name: str = "one") -> bytes | None:
    data = cache.load(key(name))
    return None if data is None else bytes(data)


def files(cache: Cache) -> list[str]:
    assert cache.folder is not None
    return sorted(path.name for path in cache.folder.iterdir())


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "deep" / "cache")


Said = Callable[[], list[str]]


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Said:
    return lambda: [record.getMessage() for record in caplog.records]


def test_what_was_stored_is_served(cache: Cache, said: Said) -> None:
    assert loaded(cache) is None
    path = stored(cache)
    assert loaded(cache) == loaded(Cache(path.parent)) == content("one")
    assert loaded(cache, "two") is None
    assert files(cache) == [path.name]
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert said() == []


@pytest.mark.parametrize("size", [0, 1, (1 << 22) - 1, (1 << 22) + 1])
def test_sizes_around_a_chunk(cache: Cache, size: int) -> None:
    put(cache, "one", size)
    assert loaded(cache) == content("one", size)


def test_changes_of_the_data_stay_in_memory(cache: Cache) -> None:
    stored(cache)
    data = cache.load(key("one"))
    assert data is not None
    data[:5] = b"other"
    assert loaded(cache) == content("one")


def test_the_data_are_served_after_their_file_is_gone(cache: Cache) -> None:
    path = stored(cache)
    data = cache.load(key("one"))
    path.unlink()
    assert data is not None
    assert bytes(data) == content("one")


def test_a_writer_may_seek(cache: Cache) -> None:
    """As OpenVINO does, which fills in its header last."""

    def write(body: io.BytesIO) -> None:
        body.write(b"????data")
        end = body.seek(0, io.SEEK_CUR)
        assert (end, body.tell()) == (8, 8)
        body.seek(0)
        body.write(b"head")
        body.seek(end)
        body.write(b" more")
        body.seek(0)
        body.flush()

    cache.store(key("one"), MINE, write)
    assert loaded(cache) == b"headdata more"


def test_a_key_is_a_sha256(cache: Cache) -> None:
    stored(cache)
    for wrong in ("..", "../" + "0" * 61, key("one").upper(), key("one")[:-1]):
        with pytest.raises(ValueError, match="is no key"):
            cache.load(wrong)


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def test_a_damaged_entry_is_never_served(cache: Cache, said: Said) -> None:
    header = HEADER.size + 4
    for position in (0, 15, 16, 47, 48, 303, 304, 311, 312, header - 1, DATA, DATA + 5_000, DATA + 9_999):
        flip(stored(cache), position)
        assert loaded(cache) is None, position
        assert files(cache) == []
    stored(cache)
    assert loaded(cache) == content("one")
    assert all("damaged" in text and "made anew" in text for text in said())


@pytest.mark.parametrize("size", [0, 10, DATA - 1, DATA, DATA + 9_999])
def test_an_entry_that_is_cut_short(cache: Cache, size: int) -> None:
    path = stored(cache)
    os.truncate(path, size)
    assert loaded(cache) is None
    assert files(cache) == []


def test_an_entry_that_is_too_long(cache: Cache) -> None:
    with stored(cache).open("ab") as file:
        file.write(b"more")
    assert loaded(cache) is None


def test_an_entry_of_another_key(cache: Cache, said: Said) -> None:
    path = stored(cache)
    path.rename(path.with_name(f"{key('two')}.entry"))
    assert loaded(cache, "two") is None
    assert "another entry" in said()[0]


def test_an_entry_of_another_format(cache: Cache) -> None:
    """Its header is right, but for the first line."""
    import zlib

    path = stored(cache)
    data = bytearray(path.read_bytes())
    data[:16] = b"ckd_fast cache 0"
    data[HEADER.size : HEADER.size + 4] = zlib.crc32(data[: HEADER.size]).to_bytes(4, "little")
    path.write_bytes(data)
    assert loaded(cache) is None


def test_the_checksum_depends_on_every_chunk() -> None:
    data = memoryview(bytearray(content("big", 3 * (1 << 22))))
    right = checksum(data)
    for position in range(0, len(data), 1 << 22):
        data[position] ^= 1
        assert checksum(data) != right
        data[position] ^= 1
    assert checksum(data) == right


@pytest.mark.parametrize("dangling", [False, True])
def test_a_link_is_not_followed(cache: Cache, tmp_path: Path, said: Said, *, dangling: bool) -> None:
    path = stored(cache)
    target = path.rename(tmp_path / "elsewhere")
    before = target.read_bytes()
    if dangling:
        target.unlink()
    path.symlink_to(target)
    assert loaded(cache) is None
    assert "not a regular file" in said()[0]
    assert not path.is_symlink()
    stored(cache)
    assert loaded(cache) == content("one")
    assert dangling or target.read_bytes() == before


def test_a_pipe_is_not_waited_for(cache: Cache) -> None:
    path = stored(cache)
    path.unlink()
    os.mkfifo(path)
    assert loaded(cache) is None
    stored(cache)
    assert loaded(cache) == content("one")


def test_a_folder_in_the_place_of_an_entry(cache: Cache, said: Said) -> None:
    path = stored(cache)
    path.unlink()
    path.mkdir()
    (path / "a file").touch()
    assert loaded(cache) is None
    assert put(cache, "one") == path
    assert (path / "a file").exists()
    assert files(cache) == [path.name]
    assert len(said()) == 2  # not read, not written
    with pytest.raises(OutputError, match="cannot be removed"):
        cache.clear()


def test_an_entry_that_others_may_write(cache: Cache, said: Said) -> None:
    for mode in (0o620, 0o602):
        path = stored(cache)
        path.chmod(mode)
        assert loaded(cache) is None
        assert files(cache) == []
    assert "may be written by other users" in said()[0]


def test_a_folder_that_others_may_write(cache: Cache, said: Said) -> None:
    path = stored(cache)
    path.parent.chmod(0o770)
    assert loaded(cache) is None
    put(cache, "two")
    assert files(cache) == [path.name]
    assert len(said()) == 1
    assert f"the cache {path.parent} is not used (may be written by other users: chmod go-w)" in said()[0]


def test_what_belongs_to_another_user(cache: Cache, monkeypatch: pytest.MonkeyPatch, said: Said) -> None:
    path = stored(cache)
    me = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: me + 1)
    assert loaded(cache) is None
    put(cache, "two")
    assert files(cache) == [path.name]
    assert len(said()) == 1
    assert "belongs to another user" in said()[0]


def test_a_folder_may_be_a_link(cache: Cache, tmp_path: Path) -> None:
    path = stored(cache)
    (tmp_path / "link").symlink_to(path.parent)
    assert loaded(Cache(tmp_path / "link")) == content("one")


def test_the_least_recently_used_gives_way(tmp_path: Path, said: Said) -> None:
    cache = Cache(tmp_path, limit=3 * (DATA + 10_000))
    for name in ("one", "two", "three"):
        put(cache, name)
    assert loaded(cache, "one") == content("one")
    put(cache, "four")
    assert [loaded(cache, name) is not None for name in ("one", "two", "three", "four")] == [True, False, True, True]
    put(cache, "five", 24_096)  # takes the room of two
    assert [loaded(cache, name) is not None for name in ("one", "three", "four", "five")] == [False, False, True, True]
    assert sum(entry.size for entry in cache.entries()) <= cache.limit
    assert said() == []


def test_the_order_outlives_a_clock_that_goes_backwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(tmp_path, limit=2 * (DATA + 10_000))
    for name in ("one", "two"):
        path = stored(cache, name)
        os.utime(path, (4e9, 4e9 + len(name) % 2))  # 2096
    monkeypatch.setattr(time, "time_ns", lambda: 10**9)
    loaded(cache, "one")
    loaded(cache, "two")
    loaded(cache, "one")
    put(cache, "three")
    assert loaded(cache, "two") is None
    assert loaded(cache, "one") == content("one")


def test_replacing_an_entry_does_not_count_it_twice(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit=2 * (DATA + 10_000))
    for name in ("one", "two", "two", "one"):
        put(cache, name)
    assert [loaded(cache, name) for name in ("one", "two")] == [content("one"), content("two")]


def test_an_entry_larger_than_the_limit(tmp_path: Path, said: Said) -> None:
    cache = Cache(tmp_path, limit=DATA + 10_000)
    put(cache, "one")
    put(cache, "two", 10_001)
    assert loaded(cache, "two") is None
    assert loaded(cache, "one") == content("one")  # it did not have to go
    assert files(cache) == [f"{key('one')}.entry"]
    assert said() == [f"{MINE}: larger than the limit of the cache, 1.4096e-05 GB, so it is not kept"]


def test_files_of_others_stay(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x" * 50_000)
    (tmp_path / f"{key('one')}.txt").write_text("x")
    (tmp_path / "download.part").write_text("x")
    cache = Cache(tmp_path, limit=DATA + 10_000)
    put(cache, "one")
    put(cache, "two")
    assert [entry.path.name for entry in cache.clear()] == [f"{key('two')}.entry"]
    assert files(cache) == sorted(["notes.txt", "download.part", f"{key('one')}.txt"])


def test_what_an_entry_is_about(cache: Cache) -> None:
    cache.store(key("one"), "wärme " * 100, lambda body: body.write(b""))
    cache.store(key("two"), "\udcff\x1b", lambda body: body.write(b""))
    one, two = cache.entries()
    assert one.about.startswith("wärme wärme")
    assert set(one.about) == set("wärme ")
    assert len(one.about.encode()) in (255, 256)
    assert two.about == r"?\x1b"


def test_a_writer_that_fails(cache: Cache) -> None:
    """Its own error passes; nothing is left."""

    def write(body: io.BytesIO) -> None:
        body.write(b"half")
        raise RuntimeError("no more")

    stored(cache, "two")
    with pytest.raises(RuntimeError, match="no more"):
        cache.store(key("one"), MINE, write)
    assert files(cache) == [f"{key('two')}.entry"]


def test_a_full_disk(tmp_path: Path) -> None:
    """The kernel refuses the write; the writer does not notice, as OpenVINO does not."""
    program = """
import io, resource, signal, sys
from contextlib import suppress
from pathlib import Path
from ckd_fast.cache import Cache

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
cache = Cache(Path(sys.argv[1]))

def write(body):
    for _ in range(100):
        with suppress(OSError):
            body.write(bytes(1_000_000))

for key in ("1" * 64, "2" * 64):
    cache.store(key, "big", write)
    assert cache.load(key) is None
"""
    command = [sys.executable, "-c", program, str(tmp_path)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert list(tmp_path.iterdir()) == []
    assert ran.stderr.count("\n") == 1
    assert f"the cache {tmp_path} cannot be written (File too large)" in ran.stderr


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_a_folder_that_cannot_be_written(cache: Cache, monkeypatch: pytest.MonkeyPatch, said: Said, code: int) -> None:
    stored(cache)

    def refuse(**_options: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    put(cache, "two")
    put(cache, "three")
    (text,) = said()
    assert text.startswith(
        f"the cache {cache.folder} cannot be written ({os.strerror(code)}): every start takes as long"
    )
    assert loaded(cache) == content("one")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder(cache: Cache, said: Said) -> None:
    path = stored(cache)
    path.parent.chmod(0o500)
    assert loaded(cache) == content("one")
    put(cache, "two")
    assert len(said()) == 1
    path.parent.chmod(0o700)


def test_a_file_in_the_place_of_the_folder(tmp_path: Path, said: Said) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        cache = Cache(folder)
        assert loaded(cache) is None
        cache.store(key("one"), MINE, lambda body: body.write(b"data"))
    assert all(str(tmp_path / "file") in text for text in said())
    assert 2 <= len(said()) <= 4


def test_all_engines_say_once_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Said) -> None:
    """Each asks for the user's cache."""
    monkeypatch.setenv("CKD_FAST_CACHE", str(tmp_path / "cache"))
    tries: list[object] = []

    def full(**options: object) -> None:
        tries.append(options)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tempfile, "mkstemp", full)
    for name in ("one", "two"):
        put(user_cache(), name)
    assert len(said()) == 1
    assert "cannot be written" in said()[0]
    assert len(tries) == 1


def test_a_file_system_that_says_zero_links(cache: Cache, monkeypatch: pytest.MonkeyPatch, said: Said) -> None:
    """Some do of files that are open."""
    real = os.fstat

    def without_links(handle: int) -> os.stat_result:
        state = list(real(handle))
        state[stat.ST_NLINK] = 0
        return os.stat_result(state)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", without_links)
        path = stored(cache)
    assert loaded(cache) == content("one")
    assert files(cache) == [path.name]
    assert said() == []


def test_a_file_that_is_swept_each_time(cache: Cache, monkeypatch: pytest.MonkeyPatch, said: Said) -> None:
    make = tempfile.mkstemp

    def swept(**options: object) -> tuple[int, str]:
        handle, name = make(**options)  # type: ignore[call-overload]
        Path(name).unlink()
        return handle, name

    monkeypatch.setattr(tempfile, "mkstemp", swept)
    assert put(cache, "one") is None
    assert files(cache) == []
    (text,) = said()
    assert "cannot be written (No such file or directory)" in text


WRITER = """
import os, signal, sys
from pathlib import Path
from ckd_fast.cache import Cache

def write(body):
    body.write(bytes(100_000))
    body.flush()
    print("half", flush=True)
    sys.stdin.read()

Cache(Path(sys.argv[1])).store("1" * 64, "half", write)
"""


def test_what_a_killed_process_leaves_is_swept(cache: Cache) -> None:
    stored(cache)
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(cache.folder)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdin is not None
    with process, process.stdin, process.stdout:
        assert process.stdout.readline() == b"half\n"
        assert len(files(cache)) == 2
        stored(cache, "two")
        assert len(files(cache)) == 3  # it is still being written
        assert len(cache.entries()) == 2
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert len(files(cache)) == 3
    stored(cache, "three")
    assert files(cache) == sorted(f"{key(name)}.entry" for name in ("one", "two", "three"))


CROWD = """
import hashlib, random, sys
from pathlib import Path
from ckd_fast.cache import Cache

cache = Cache(Path(sys.argv[1]), limit=120_000)
draw = random.Random(int(sys.argv[2]))
hits = 0
for _ in range(150):
    name = str(draw.randrange(6))
    key = hashlib.sha256(name.encode()).hexdigest()
    right = hashlib.shake_256(name.encode()).digest(30_000)
    data = cache.load(key)
    if data is None:
        cache.store(key, name, lambda body: [body.write(right[at : at + 1000]) for at in range(0, 30_000, 1000)])
    else:
        hits += 1
        assert data == right
print(hits)
"""


def test_processes_that_write_and_remove_the_same_entries(tmp_path: Path) -> None:
    running = [
        subprocess.Popen(
            [sys.executable, "-c", CROWD, str(tmp_path), str(seed)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for seed in range(4)
    ]
    for process in running:
        out, errors = process.communicate()
        assert process.returncode == 0, errors
        assert int(out) > 10
        assert errors == b""
    left = Cache(tmp_path).entries()
    assert sum(entry.size for entry in left) <= 120_000 + 4 * (DATA + 30_000)  # each may have made room at once
    assert len(list(tmp_path.iterdir())) == len(left)


def test_a_cache_that_is_off(said: Said) -> None:
    cache = Cache(None)
    cache.store(key("one"), MINE, lambda _: pytest.fail("nothing is written"))
    assert cache.load(key("one")) is None
    assert cache.entries() == cache.clear() == []
    assert said() == []


@pytest.mark.skipif(sys.platform != "linux", reason="other platforms have other folders")
def test_the_users_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: Said) -> None:
    for value, folder in (("", None), ("off", None), ("/a/b", Path("/a/b")), ("a", Path.cwd() / "a")):
        monkeypatch.setenv("CKD_FAST_CACHE", value)
        assert user_cache().folder == folder
    monkeypatch.delenv("CKD_FAST_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    for value, folder in (("/x", Path("/x/ckd_fast")), ("", tmp_path / ".cache/ckd_fast")):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert user_cache().folder == folder
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored, by the standard
    assert user_cache().folder == tmp_path / ".cache/ckd_fast"
    assert said() == []
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    _shared.cache_clear()
    assert [user_cache().folder for _ in range(2)] == [None, None]
    assert len(said()) == 1
    assert "no home folder" in said()[0]
