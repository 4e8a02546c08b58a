"""`python bench/start.py`: three kinds of starts, with the later one from the cache."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from support import ROOT, run

pytest.importorskip("openvino", reason="openvino is not installed: pip install 'ckd_fast[cpu]'")


def test_starts(tmp_path: Path) -> None:
    out = tmp_path / "start.json"
    done = run(sys.executable, ROOT / "bench" / "start.py", "--model", "tiny", "--turns", "1", "--json", str(out))
    assert done.returncode == 0, done.stderr
    starts = json.loads(out.read_text())["starts"]
    assert [start["cache"] for start in starts] == ["off", "empty", "filled"]
    for start in starts:
        assert start["engine"] == "openvino on cpu, float32"
        assert 0 < start["load_s"] < start["ready_s"]
        assert 100 < start["private_mb"] + start["file_mb"] <= start["peak_mb"] + 1
    assert run(sys.executable, ROOT / "bench" / "start.py", "--model", "none").returncode == 2


def test_a_start_that_is_killed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """It leaves no word."""
    monkeypatch.syspath_prepend(ROOT / "bench")
    import start

    monkeypatch.setattr(start, "CHILD", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(SystemExit) as ended:
        start.start("off", "off", Path("absent"), "float32")
    assert ended.value.code == 2
    assert "a start ended with exit code -9" in capsys.readouterr().err
