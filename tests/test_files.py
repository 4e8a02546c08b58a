from __future__ import annotations

import os
from pathlib import Path

import pytest

from ckd_fast.errors import InputError, OutputError, some_names
from ckd_fast.files import atomically, make_folder, reading, refuse_overwrite, write_atomically


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    write_atomically(path, "old\n")
    with pytest.raises(UnicodeEncodeError), atomically(path) as temporary:
        temporary.write_text("half\udce9")
    assert path.read_text() == "old\n"
    write_atomically(path, "caf\udce9")
    assert path.read_text() == "caf\\udce9"
    assert list(path.parent.iterdir()) == [path]
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask


def test_links_and_pipes_stay_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link.json").symlink_to(tmp_path / "there" / "real.json")
    for text in ("one", "two"):
        write_atomically(tmp_path / "link.json", text)
        assert (tmp_path / "there" / "real.json").read_text() == text
    assert (tmp_path / "link.json").is_symlink()
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_atomically(tmp_path / "pipe", "through")
    assert os.read(reader, 100) == b"through"
    os.close(reader)
    assert (tmp_path / "pipe").is_fifo()


def test_errors_name_the_path(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for attempt in (write_atomically, lambda path, _text: make_folder(path)):
        with pytest.raises(OutputError, match=r"file/inside: cannot be written \(\w+ "):
            attempt(tmp_path / "file" / "inside", "x")
    with pytest.raises(InputError, match=r"none: cannot be read \(No such file"), reading(tmp_path / "none"):
        (tmp_path / "none").read_text()


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.txt", "b.txt", "c.txt")]
    refuse_overwrite(paths, force=False)
    paths[1].touch()
    with pytest.raises(OutputError, match=r": b\.txt exists; write elsewhere or use --force"):
        refuse_overwrite(paths, force=False)
    paths[2].touch()
    with pytest.raises(OutputError, match=r": b\.txt, c\.txt exist;"):
        refuse_overwrite(paths, force=False)
    refuse_overwrite(paths, force=True)


def test_names_in_messages() -> None:
    assert some_names(["a", "b"]) == "a, b"
    assert some_names(list("abcdefg")) == "a, b, c, d, e and 2 more"
