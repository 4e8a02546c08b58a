"""Table I of the CKD paper as data."""

from __future__ import annotations

import pytest
from support import shared_data

from ckd_fast.datasets import open_dataset
from ckd_fast.evaluation import evaluate
from ckd_fast.evaluation.published import PublishedScores, published_trackers

BY_NAME = {tracker.name: tracker for tracker in published_trackers()}


def test_figures_of_the_paper() -> None:
    assert len(BY_NAME) == 26
    ckd = BY_NAME["CKD"]
    assert (ckd.venue, ckd.backbone, ckd.fps) == ("ACM MM 2024", "ViT-B", 96.4)
    assert ckd.scores["gtot"] == PublishedScores(pytest.approx(0.932), pytest.approx(0.772), None)
    assert ckd.scores["lasher"] == PublishedScores(pytest.approx(0.732), pytest.approx(0.581), pytest.approx(0.693))
    assert ckd.scores["vtuav"] == PublishedScores(pytest.approx(0.902), pytest.approx(0.778), None)
    assert list(BY_NAME["mfDiMP"].scores) == ["gtot", "rgbt210", "lasher", "vtuav"]  # none on RGBT234
    assert BY_NAME["BAT"].scores["lasher"] == PublishedScores(pytest.approx(0.702), pytest.approx(0.563), None)
    assert BY_NAME["BAT"].fps is None
    assert sum(len(tracker.scores) for tracker in BY_NAME.values()) == 76


@pytest.mark.parametrize("name", ["APFNet", "mfDiMP"])
def test_published_result_files_have_the_published_scores(name: str) -> None:
    """Also shows that the table's NPR is the toolkits' precision at 0.2, not an area."""
    dataset = open_dataset("lasher", shared_data("eval", "groundtruth", "LasHeR"))
    evaluation = evaluate(dataset, [shared_data("eval", "results", "LasHeR", name)])
    scores, published = evaluation.metrics(evaluation.trackers[0]), BY_NAME[name].scores["lasher"]
    assert (scores.pr, scores.npr, scores.sr) == pytest.approx((published.pr, published.npr, published.sr), abs=5e-4)
    assert scores.npr_auc < scores.npr - 0.02
