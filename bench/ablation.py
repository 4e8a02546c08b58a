"""The paper's ablations and sweeps on a small model at equal small budgets, all from one student.

    python bench/ablation.py --init student.safetensors --data DIR --out runs/ablation
    python bench/ablation.py --init student.safetensors --data DIR --out runs/ablation --pairs 8000 --rows sd sd-cd
    ckd-fast curves runs/ablation/* --out figures/

Every row distils for the same number of pairs, in the same order, from the same first weights, and differs from the
row `sd-cd-mm` in nothing but what its name says; those without MM hide no patches. The rows of elimination go on from
`sd-cd-mm` with frozen backbones, as the published second stage does. Runs that are there are not repeated: an
interrupted table goes on where it stopped.

Two figures per row: mean IoU on rendered pairs that no run has seen, and mean IoU of the tracker on generated clips.
With one seed each, differences of the second figure below its spread over clips mean nothing; the spread is printed.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from common import machine, write_json
from packaged import Clip, follow, ours, synthetic

from ckd_fast import load_model
from ckd_fast.reference.config import Elimination
from ckd_fast.reference.losses import LossConfig
from ckd_fast.training import Process, TrainConfig, Trainer, recipe
from ckd_fast.training.config import SceneConfig, Stage, read_config
from ckd_fast.training.trainer import mean_overlap

BASE = "sd-cd-mm"
METHOD = ("baseline", "sd", "sd-cd", BASE, "in", "fd")
MASKS = ("mask-50", "mask-75")  # mask-0 and mask-25 are sd-cd and sd-cd-mm
TIMES = (0.1, 10.0)  # of the recipe's weights
ELIMINATIONS = ("eliminate-none", "eliminate-ce", "eliminate-mce")
ELIMINATE = Stage(
    "eliminate", epochs=1, batch=16, hidden=0.0, schedule="cosine", elimination=True, heads_only=True, head_rate=3e-4
)
VALIDATION_PAIRS = 1024


@dataclass(frozen=True)
class Plan:
    """A row: its name, its configuration, and the row whose weights it starts from."""

    name: str
    config: TrainConfig
    after: str | None = None


@dataclass(frozen=True)
class Row:
    """What a row came to.

    Attributes:
        name: of the row.
        pairs_iou: mean IoU on rendered pairs.
        clips_iou: mean over clips of the tracker's mean IoU.
        clips_error: standard error of that mean.
    """

    name: str
    pairs_iou: float
    clips_iou: float
    clips_error: float


def plans(pairs: int, base: TrainConfig) -> list[Plan]:
    """All rows, in an order in which every row's first weights are there."""
    distil = next(stage for stage in base.stages if stage.name == "distil")
    weights = base.losses

    def distilled(name: str) -> Plan:
        of = recipe(name)
        stage = dataclasses.replace(distil, pairs=pairs, hidden=of.stages[0].hidden)
        losses = dataclasses.replace(
            weights,
            style_weight=weights.style_weight if of.losses.style_weight else 0.0,
            content_weight=weights.content_weight if of.losses.content_weight else 0.0,
        )
        return Plan(name, _with(base, stage, losses=losses, distillation=of.distillation))

    def weighted(name: str, losses: LossConfig) -> Plan:
        return Plan(name, dataclasses.replace(distilled(BASE).config, losses=losses))

    def eliminated(name: str) -> Plan:
        model = dataclasses.replace(base.model, elimination=recipe(name).model.elimination)
        stage = dataclasses.replace(ELIMINATE, pairs=pairs // 3)
        return Plan(name, _with(base, stage, model=model), after=BASE)

    return [
        *(distilled(name) for name in (*METHOD, *MASKS)),
        *(
            weighted(f"style-x{t:g}", dataclasses.replace(weights, style_weight=t * weights.style_weight))
            for t in TIMES
        ),
        *(
            weighted(f"content-x{t:g}", dataclasses.replace(weights, content_weight=t * weights.content_weight))
            for t in TIMES
        ),
        *(eliminated(name) for name in ELIMINATIONS),
    ]


def _with(base: TrainConfig, stage: Stage, **changes: object) -> TrainConfig:
    """The configuration with one stage, logged closely."""
    upkeep = dataclasses.replace(base.upkeep, log_every=25, checkpoint_every=10**6, validate_every=100)
    return dataclasses.replace(base, stages=(stage,), upkeep=upkeep, **changes)  # type: ignore[arg-type]


def train(plan: Plan, init: str, out: Path) -> Path:
    """The row's weights, trained unless they are there; a run of other settings is never taken for this one."""
    final, config = out / "final.safetensors", dataclasses.replace(plan.config, init=init)
    stored = out / "config.json"
    if stored.exists() and read_config(stored.read_text(encoding="utf-8"), str(stored)) != config:
        raise SystemExit(f"{out}: holds a run with other settings; choose another --out, or remove it")
    if not final.exists():
        Trainer(config, out, Process(0, 1, torch.device("cpu"))).run(resume=out.exists())
    return final


def judge(name: str, weights: Path, config: TrainConfig, clips: list[Clip]) -> Row:
    """Both figures of a row."""
    model = load_model(str(weights))
    model = dataclasses.replace(model, config=dataclasses.replace(config.model, elimination=_tracks_with(config)))
    scene = next((source.scene for source in config.sources if source.kind == "synthetic"), SceneConfig())
    many = dataclasses.replace(config, upkeep=dataclasses.replace(config.upkeep, validation_pairs=VALIDATION_PAIRS))
    on_pairs = mean_overlap(model.student(), many, scene, torch.device("cpu"))
    on_clips = [follow(clip, ours(model)).mean_iou for clip in clips]
    error = statistics.stdev(on_clips) / len(on_clips) ** 0.5
    return Row(name, on_pairs, statistics.fmean(on_clips), error)


def _tracks_with(config: TrainConfig) -> Elimination:
    """Rows of the first stage are judged as they were trained, without elimination."""
    return config.model.elimination if config.stages[-1].elimination else "none"


def main() -> None:
    """Train what is missing, print a table in Markdown, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--init", required=True, help="the student that all rows start from")
    parser.add_argument("--data", type=Path, required=True, help="as of `ckd-fast train packaged`")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--pairs", type=int, default=8000)
    parser.add_argument("--rows", nargs="+", help="these alone")
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    base = recipe("packaged")
    sources = tuple(
        source if source.kind == "synthetic" else dataclasses.replace(source, root=str(options.data / source.root))
        for source in base.sources
    )
    table = plans(options.pairs, dataclasses.replace(base, sources=sources))
    unknown = set(options.rows or ()) - {plan.name for plan in table}
    if unknown:
        parser.error(f"unknown rows {sorted(unknown)}: known are {[plan.name for plan in table]}")
    if options.clips < 2 or options.frames < 2:
        parser.error(f"--clips {options.clips} --frames {options.frames}: expected at least 2 of each")
    wanted = [plan for plan in table if not options.rows or plan.name in options.rows]
    for plan in wanted:
        before = plan.after is None or plan.after in {one.name for one in wanted}
        if not before and not (options.out / str(plan.after) / "final.safetensors").exists():
            parser.error(f"{plan.name} goes on from {plan.after}, which is not in {options.out}: name that row too")
    clips = list(synthetic(options.clips, options.frames))
    start = load_model(options.init)
    rows = []
    print("| row | IoU on pairs | IoU on clips |\n|---|---|---|", flush=True)
    for plan in wanted:
        init = options.init if plan.after is None else str(last_checkpoint(options.out / plan.after))
        row = judge(plan.name, train(plan, init, options.out / plan.name), plan.config, clips)
        rows.append(row)
        print(f"| {row.name} | {row.pairs_iou:.3f} | {row.clips_iou:.3f} ± {row.clips_error:.3f} |", flush=True)
    if options.json:
        content = {
            "machine": machine("cpu"),
            "start": {"sha256": start.provenance.sha256, "kind": start.provenance.kind},
            "pairs": options.pairs,
            "clips": options.clips,
            "frames": options.frames,
            "rows": [asdict(row) for row in rows],
        }
        write_json(options.json, content)


def last_checkpoint(out: Path) -> Path:
    """The running mean of students and teachers at a run's end."""
    return max((out / "checkpoints").iterdir()) / "ema.safetensors"


if __name__ == "__main__":
    main()
