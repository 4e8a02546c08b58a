"""Speed and LasHeR precision of other trackers as published, for the layer behind the speed plot.

This is not Table I of the CKD paper, whose text was not at hand; it holds the trackers for which both numbers are on
record, with where they were measured and who says so. Devices and protocols differ from row to row: the layer
gives the order of magnitude, not a ranking.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PublishedSpeed:
    """One tracker.

    Attributes:
        name: of the tracker.
        fps: frames per second.
        pr: LasHeR precision, as a fraction.
        device: where the speed was measured.
        source: who says so.
    """

    name: str
    fps: float
    pr: float
    device: str
    source: str


_ADTRACK = "speed as measured for the ADTrack paper (CVPR 2026), quoted second-hand"
_FALAKI = "table of the repository Lightweight-RGB-T (arXiv 2506.19154)"

PUBLISHED_SPEEDS: tuple[PublishedSpeed, ...] = (
    PublishedSpeed("CKD", 96.4, 0.732, "device not stated", "readme of Multi-Modality-Tracking/CKD (ACM MM 2024)"),
    PublishedSpeed("CMD", 30.0, 0.590, "GTX 1080 Ti", "CVPR 2023, as listed by RGBT-Tracking-Results"),
    PublishedSpeed("TBSI", 36.2, 0.702, "device not stated", "readme of TBSI (CVPR 2023)"),
    PublishedSpeed("TBSI-Tiny", 40.0, 0.617, "device not stated", _FALAKI),
    PublishedSpeed("CAFormer", 83.6, 0.700, "device not stated", "arXiv 2408.02222 (AAAI 2025)"),
    PublishedSpeed("BAT", 62.0, 0.702, "RTX 4090", _ADTRACK),
    PublishedSpeed(
        "ADTrack", 148.3, 0.702, "RTX 4090, without preprocessing", "ADTrack paper (CVPR 2026), quoted second-hand"
    ),
    PublishedSpeed("SUTrack-T224", 102.4, 0.667, "RTX 4090", _ADTRACK),
    PublishedSpeed("LightFC-X", 156.0, 0.638, "RTX 3090 Ti", "readme of LightFC-X (arXiv 2502.18143)"),
    PublishedSpeed("LightFC-X-ST", 150.0, 0.647, "RTX 3090 Ti", "readme of LightFC-X (arXiv 2502.18143)"),
    PublishedSpeed("CMDTrack-tiny", 126.0, 0.675, "RTX 2080 Ti", "readme of TransCMD (TPAMI 2025)"),
    PublishedSpeed("EMTrack", 83.8, 0.659, "device not stated", "TCSVT 2025, quoted second-hand"),
    PublishedSpeed("mmMobileViT", 122.0, 0.603, "device not stated", _FALAKI),
)
