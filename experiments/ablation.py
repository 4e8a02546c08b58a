"""The paper's ablations and sweeps on a small model, at equal small budgets, all from one student.

    python experiments/ablation.py --init student.safetensors --data DIR --out runs/ablation
    python experiments/ablation.py --init student.safetensors --data DIR --out runs/ablation --rows sd sd-cd
    python experiments/curves.py runs/ablation/* --out figures/

Every row trains on the same pairs in the same order from the same weights, and differs from row sd-cd-mm only in what
its name says; rows without mm hide no patches. The elimination rows continue from sd-cd-mm with frozen backbones, like
the published second stage. Finished runs are not repeated: an interrupted table continues where it stopped.

Each row has two figures: mean IoU on rendered pairs that no run has seen, and mean IoU of the tracker on generated
clips with its standard error. There is one seed per row, so differences within the standard error mean nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))  # for common.py, which finds ckd_fast

import torch
from common import machine, write_json
from packaged import Clip, generated_clips, our_tracker, track_clip

from ckd_fast import load_model
from ckd_fast.training import Process, TrainConfig, Trainer, recipe
from ckd_fast.training.config import SceneConfig, Stage, read_config
from ckd_fast.training.trainer import mean_overlap

BASE = "sd-cd-mm"
COMPONENTS = ("baseline", "sd", "sd-cd", BASE, "in", "fd")
MASKS = ("mask-50", "mask-75")  # sd-cd and sd-cd-mm are 0 % and 25 %
FACTORS = (0.1, 10.0)  # applied to the recipe's loss weights
ELIMINATIONS = ("eliminate-none", "eliminate-ce", "eliminate-mce")
ELIMINATE = Stage(
    "eliminate", epochs=1, batch=16, hidden=0.0, schedule="cosine", elimination=True, heads_only=True, head_rate=3e-4
)
VALIDATION_PAIRS = 1024


@dataclass(frozen=True)
class Plan:
    """A row to train, from the weights of row `after`, or from the common student."""

    name: str
    config: TrainConfig
    after: str | None = None


@dataclass(frozen=True)
class Row:
    name: str
    pairs_iou: float  # mean over rendered pairs
    clips_iou: float  # mean over clips of the tracker's mean
    clips_error: float  # standard error of that mean


def plan_rows(pairs: int, base: TrainConfig) -> list[Plan]:
    """All rows, each after the row it starts from."""
    distil = next(stage for stage in base.stages if stage.name == "distil")
    losses = base.losses

    def component(name: str) -> Plan:
        published = recipe(name)
        stage = dataclasses.replace(distil, pairs=pairs, hidden=published.stages[0].hidden)
        style = losses.style_weight if published.losses.style_weight else 0.0
        content = losses.content_weight if published.losses.content_weight else 0.0
        own_losses = dataclasses.replace(losses, style_weight=style, content_weight=content)
        return Plan(name, _one_stage(base, stage, losses=own_losses, distillation=published.distillation))

    def elimination(name: str) -> Plan:
        model = dataclasses.replace(base.model, elimination=recipe(name).model.elimination)
        stage = dataclasses.replace(ELIMINATE, pairs=pairs // 3)
        return Plan(name, _one_stage(base, stage, model=model), after=BASE)

    rows = [component(name) for name in (*COMPONENTS, *MASKS)]
    for term in ("style", "content"):
        for factor in FACTORS:
            scaled = {f"{term}_weight": factor * getattr(losses, f"{term}_weight")}
            config = dataclasses.replace(component(BASE).config, losses=dataclasses.replace(losses, **scaled))
            rows.append(Plan(f"{term}-x{factor:g}", config))
    return rows + [elimination(name) for name in ELIMINATIONS]


def _one_stage(base: TrainConfig, stage: Stage, **changes: object) -> TrainConfig:
    upkeep = dataclasses.replace(base.upkeep, log_every=25, checkpoint_every=10**6, validate_every=100)
    return dataclasses.replace(base, stages=(stage,), upkeep=upkeep, **changes)  # type: ignore[arg-type]


def train(plan: Plan, init: str, out: Path) -> Path:
    """Train the row unless its weights exist; refuse a run with other settings."""
    final, config = out / "final.safetensors", dataclasses.replace(plan.config, init=init)
    stored = out / "config.json"
    if stored.exists() and read_config(stored.read_text(encoding="utf-8"), str(stored)) != config:
        raise SystemExit(f"{out}: holds a run with other settings; choose another --out, or remove it")
    if not final.exists():
        Trainer(config, out, Process(0, 1, torch.device("cpu"))).run(resume=out.exists())
    return final


def evaluate_row(name: str, weights: Path, config: TrainConfig, clips: Sequence[Clip]) -> Row:
    model = load_model(str(weights))
    # First-stage rows were trained without elimination, so they track without it.
    elimination = config.model.elimination if config.stages[-1].elimination else "none"
    model = dataclasses.replace(model, config=dataclasses.replace(config.model, elimination=elimination))
    scene = next((source.scene for source in config.sources if source.kind == "synthetic"), SceneConfig())
    upkeep = dataclasses.replace(config.upkeep, validation_pairs=VALIDATION_PAIRS)
    many_pairs = dataclasses.replace(config, upkeep=upkeep)
    on_pairs = mean_overlap(model.student(), many_pairs, scene, torch.device("cpu"))
    on_clips = [track_clip(clip, our_tracker(model)).mean_iou for clip in clips]
    return Row(name, on_pairs, statistics.fmean(on_clips), statistics.stdev(on_clips) / len(on_clips) ** 0.5)


def last_checkpoint(out: Path) -> Path:
    """Running mean of students and teachers at a run's end."""
    return max((out / "checkpoints").iterdir()) / "ema.safetensors"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--init", required=True, metavar="FILE", help="student that all rows start from")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="as for `ckd-fast train packaged`")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the runs")
    parser.add_argument("--pairs", type=int, default=8000, metavar="N", help="training pairs per row (default: 8000)")
    parser.add_argument("--rows", nargs="+", metavar="NAME", help="only these rows")
    parser.add_argument("--clips", type=int, default=8, metavar="N", help="generated clips to track (default: 8)")
    parser.add_argument("--frames", type=int, default=60, metavar="N", help="frames of each clip (default: 60)")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="CPU threads (default: 1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="result file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    base = recipe("packaged")
    sources = tuple(
        source if source.kind == "synthetic" else dataclasses.replace(source, root=str(options.data / source.root))
        for source in base.sources
    )
    plans = {plan.name: plan for plan in plan_rows(options.pairs, dataclasses.replace(base, sources=sources))}
    wanted = [plan for plan in plans.values() if not options.rows or plan.name in options.rows]
    unknown = set(options.rows or ()) - set(plans)
    if unknown:
        parser.error(f"unknown rows {', '.join(sorted(unknown))}: choose from {', '.join(plans)}")
    if options.clips < 2 or options.frames < 2:
        parser.error(f"--clips {options.clips} --frames {options.frames}: expected at least 2 of each")
    for plan in wanted:
        found = plan.after is None or (options.out / plan.after / "final.safetensors").exists()
        if not found and plan.after not in [other.name for other in wanted]:
            parser.error(f"{plan.name} starts from {plan.after}, which is not in {options.out}: name that row too")
    clips = list(generated_clips(options.clips, options.frames))
    start = load_model(options.init).provenance
    rows = []
    print("| row | IoU on pairs | IoU on clips |\n|---|---|---|", flush=True)
    for plan in wanted:
        init = options.init if plan.after is None else str(last_checkpoint(options.out / plan.after))
        row = evaluate_row(plan.name, train(plan, init, options.out / plan.name), plan.config, clips)
        rows.append(row)
        print(f"| {row.name} | {row.pairs_iou:.3f} | {row.clips_iou:.3f} ± {row.clips_error:.3f} |", flush=True)
    if options.json:
        write_json(options.json, {
            "machine": machine("cpu"), "start": {"sha256": start.sha256, "kind": start.kind}, "pairs": options.pairs,
            "clips": options.clips, "frames": options.frames, "rows": [dataclasses.asdict(row) for row in rows],
        })  # fmt: skip


if __name__ == "__main__":
    main()
