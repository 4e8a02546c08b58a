"""`ckd-fast cache` shows what is in the folder, whoever wrote it, and empties it."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from commands import Command

from ckd_fast.cache import LIMIT, Cache, user_cache

FIRST, SECOND = (hashlib.sha256(name).hexdigest() for name in (b"first", b"second"))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    monkeypatch.setenv("CKD_FAST_CACHE", str(tmp_path / "cache"))
    return user_cache()


def test_an_empty_cache(cache: Cache, command: Command) -> None:
    assert command("cache").out == f"{cache.folder}: 0 entries, 0.0 MB of at most {LIMIT / 1e6:,.1f} MB\n"
    assert command("cache", "--clear").out == f"{cache.folder}: removed 0 entries, 0.0 MB\n"


def test_entries_are_listed_by_use_and_removed(cache: Cache, command: Command) -> None:
    cache.store(FIRST, "base, f32", lambda body: body.write(bytes(2_000_000)))
    cache.store(SECOND, "tiny, bf16", lambda body: body.write(bytes(500_000)))
    assert cache.load(FIRST) is not None
    head, _, _, *rows = command("cache").out.splitlines()
    assert head == f"{cache.folder}: 2 entries, 2.5 MB of at most 2,000.0 MB"
    assert [row.split("  ")[-1] for row in rows] == ["base, f32", "tiny, bf16"]
    assert [row.split()[0] for row in rows] == ["2.0", "0.5"]
    assert command("cache", "--clear").out == f"{cache.folder}: removed 2 entries, 2.5 MB\n"
    assert cache.load(FIRST) is None


def test_nothing_in_a_header_reaches_the_terminal(cache: Cache, command: Command) -> None:
    cache.store(FIRST, "red \x1b[31m\r\n\u202e name", lambda body: body.write(b"data"))
    out = command("cache").out
    assert r"red \x1b[31m\r\n\u202e name" in out
    assert out.count("\n") == 4


def test_files_of_others_are_shown_as_such(cache: Cache, command: Command) -> None:
    cache.store(FIRST, "mine", lambda body: body.write(b"data"))
    (entry,) = cache.entries()
    other = entry.path.with_name(f"{SECOND}.entry")
    other.write_bytes(b"something else")
    os.utime(other, (0, 2.0**40))  # tens of thousands of years from now, where the file system can
    (entry.path.parent / "notes.txt").write_text("of the user")
    out = command("cache").out
    assert "damaged" in out
    assert "notes" not in out
    command("cache", "--clear")
    assert [path.name for path in entry.path.parent.iterdir()] == ["notes.txt"]


def test_what_cannot_be_removed(cache: Cache, command: Command) -> None:
    cache.store(FIRST, "mine", lambda body: body.write(b"data"))
    (entry,) = cache.entries()
    entry.path.unlink()
    entry.path.mkdir()
    assert "not a file" in command("cache").out
    assert command("cache", "--clear").refuses("cannot be removed")


def test_a_cache_that_is_off(monkeypatch: pytest.MonkeyPatch, command: Command) -> None:
    monkeypatch.setenv("CKD_FAST_CACHE", "off")
    for arguments in (["cache"], ["cache", "--clear"]):
        printed = command(*arguments)
        assert (printed.code, printed.err) == (0, "")
        assert "nothing is cached: CKD_FAST_CACHE" in printed.out


@pytest.mark.parametrize(("value", "told"), [
    ("OFF", "nothing is cached: CKD_FAST_CACHE says so"), ("", "nothing is cached: CKD_FAST_CACHE says so"),
    ("{folder}/file", "{folder}/file is not used, because it is not a folder; CKD_FAST_CACHE can name another"),
    ("{folder}/open", "{folder}/open is not used, because it may be written by other users: chmod go-w; CKD"),
    ("~/mine", "{folder}/mine: 0 entries"),
])  # fmt: skip
def test_a_folder_that_is_not_used_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command, value: str, told: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CKD_FAST_CACHE", value.format(folder=tmp_path))
    for arguments in (("cache",), ("cache", "--clear")):
        shown = command(*arguments)
        assert shown.code == 0
        assert shown.out.startswith(told.format(folder=tmp_path).replace(": 0 entries", ": "))
