"""Sizes that do not fit together are refused, with what was given and what was expected."""

from __future__ import annotations

import json

import pytest

from ckd_fast import PRESETS, ModelConfig
from ckd_fast.reference.config import preset, preset_name

WRONG = [
    ({"dim": 0}, "dim=0"),
    ({"dim": 64.0}, "dim=64.0"),
    ({"depth": True}, "depth=True"),
    ({"heads": 7}, "not a multiple of heads=7"),
    ({"head_channels": 12}, "multiple of 8"),
    ({"search_size": 250}, "search_size=250 is not a multiple of patch_size=16"),
    ({"keep_ratio": 0.0}, "keep_ratio=0.0"),
    ({"keep_ratio": float("nan")}, "keep_ratio=nan"),
    ({"elimination": "MCE"}, "known are mce, ce, none"),
    ({"template_range": "CENTER"}, "known are ALL, CTR_POINT"),
    ({"eliminate_at": (6, 3)}, "ascending"),
    ({"eliminate_at": (3, 3)}, "ascending"),
    ({"eliminate_at": (-1,)}, "ascending"),
    ({"depth": 6}, r"eliminate_at=\(3, 6, 9\) names a block that a model of depth=6"),
    ({"template_factor": float("inf")}, "template_factor=inf"),
    ({"search_factor": -1.0}, "search_factor=-1.0"),
]


@pytest.mark.parametrize(("values", "message"), WRONG, ids=lambda v: str(v)[:40])
def test_wrong_sizes(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig(**values)


def test_token_schedule() -> None:
    config = PRESETS["base"]
    totals = [config.template_tokens + config.search_tokens_after(b) for b in range(12)]
    assert totals == [320] * 3 + [244] * 3 + [190] * 3 + [153] * 3
    assert ModelConfig(elimination="none", depth=2).search_tokens_after(1) == 256


def test_presets() -> None:
    assert list(PRESETS) == ["base", "base-shared", "small", "tiny"]
    assert [preset_name(preset(name)) for name in PRESETS] == list(PRESETS)
    with pytest.raises(ValueError, match="unknown model 'large': known are base, base-shared, small, tiny"):
        preset("large")


def test_round_trip_through_json() -> None:
    for config in PRESETS.values():
        assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    for values, message in (
        ({"width": 3}, "unknown setting 'width'"),
        ({"dim": "64"}, "dim='64'"),
        ({"share_students": 1}, "share_students=1"),
        ({"dim": True}, "dim=True"),
        ({"keep_ratio": "0.7"}, "keep_ratio="),
    ):
        with pytest.raises(ValueError, match=message):
            ModelConfig.from_dict(values)
