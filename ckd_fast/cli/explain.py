"""`ckd-fast explain`: figures of what the network did in one frame."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from ckd_fast.errors import InputError, OutputError

from .parsing import add_command, add_model_options, box, not_negative, positive

if TYPE_CHECKING:
    from .parsing import Commands

FILES = ("tokens.png", "features.png", "gap.png", "explain.json")


def add_explain(commands: Commands) -> None:
    """Declare the subcommand."""
    parser = add_command(
        commands,
        "explain",
        "draw what the network did in one frame: dropped tokens, feature maps, the gap between the modalities",
        "  ckd-fast explain visible/ infrared/ --init 120,80,40,90 --frame 30 --weights ckd.safetensors --out why/\n"
        "  ckd-fast explain visible/ infrared/ --init 120,80,40,90 --weights a.pt --baseline b.pt --out why/",
    )
    parser.add_argument("rgb", type=Path, metavar="RGB", help="folder of visible frames")
    parser.add_argument("tir", type=Path, metavar="TIR", help="folder of thermal frames")
    parser.add_argument("--init", type=box, required=True, metavar="x,y,w,h", help="the target in the first frame")
    parser.add_argument(
        "--frame", type=positive, default=1, metavar="N", help="which, from 1; those before are tracked"
    )
    parser.add_argument("--block", type=not_negative, metavar="B", help="of the t-SNE (default: the last)")
    parser.add_argument("--baseline", metavar="FILE", help="other weights, for the curve of similarity")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the figures")
    add_model_options(parser)
    parser.add_argument("--force", action="store_true", help="overwrite figures that are there")
    parser.set_defaults(run=run_explain)


def run_explain(options: argparse.Namespace) -> int:
    """`ckd-fast explain`."""
    from ckd_fast.evaluation.explain import alive, explain_frame, instance_norm, style_gap
    from ckd_fast.evaluation.figures import MODALITIES, draw_features, draw_gap, draw_tokens, similarities
    from ckd_fast.evaluation.writing import write_atomically
    from ckd_fast.frames import check_pair, first_pair
    from ckd_fast.tracker import Tracker
    from ckd_fast.video import FolderPairs
    from ckd_fast.video.plot import require_matplotlib

    require_matplotlib()
    out: Path = options.out
    present = [name for name in FILES if (out / name).exists()]
    if present and not options.force:
        raise OutputError(f"{out}: {', '.join(present)} exist; choose another folder or use --force")
    source = FolderPairs(options.rgb, options.tir)
    if source.length is not None and options.frame >= source.length:
        raise InputError(f"--frame {options.frame}: there are {source.length} pairs, the last is {source.length - 1}")
    # Faster engines fuse steps that are drawn here.
    engine = "reference" if options.engine == "auto" else options.engine
    tracker = Tracker(options.weights, options.model, engine, options.device, options.dtype, seed=options.seed)
    depth = tracker.engine.config.depth
    block = depth - 1 if options.block is None else options.block
    if block >= depth:
        raise InputError(f"--block {block}: the network has {depth}, the last is {depth - 1}")
    first, around, pair = None, options.init, None
    for moment in source:
        if moment.problem:
            raise InputError(moment.problem)
        if moment.rgb is None or moment.tir is None:
            continue
        if first is None:
            tracker.init(moment.rgb, moment.tir, options.init)
            first = first_pair(moment.rgb, moment.tir, tracker.config)
        elif moment.index == options.frame:
            pair = check_pair(moment.rgb, moment.tir, first.form, tracker.config)
            break
        else:
            around = tracker.update(moment.rgb, moment.tir).box
    if first is None or pair is None:
        raise InputError(f"frame {options.frame} was not reached")
    of = explain_frame(tracker.engine, first, options.init, pair, around)
    others = {}
    if options.baseline:
        baseline = Tracker(options.baseline, None, engine, options.device, options.dtype)
        others[Path(options.baseline).name] = explain_frame(baseline.engine, first, options.init, pair, around)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{out}: cannot be written ({error.strerror or error})") from error
    draw_tokens(of, out / "tokens.png")
    draw_features(of, out / "features.png", others)
    draw_gap(of, out / "gap.png", block)
    tokens = of.tokens[block][:, alive(of.tokens[block])]
    about = {
        "frame": options.frame,
        "box": list(of.box),
        "score": of.score,
        "stages": [
            {
                "block": stage.block,
                "before": stage.before,
                "kept": {name: one.nonzero()[0].tolist() for name, one in zip(MODALITIES, stage.kept, strict=True)},
            }
            for stage in of.stages
        ],
        "similarity": {"these weights": similarities(of)} | {name: similarities(one) for name, one in others.items()},
        "style_gap": {"block": block, "as_is": style_gap(tokens), "normalised": style_gap(instance_norm(tokens))},
    }
    write_atomically(out / "explain.json", json.dumps(about, indent=1) + "\n")
    kept = " -> ".join(str(count) for count in [of.grid**2, *(int(stage.kept[0].sum()) for stage in of.stages)])
    print(f"frame {options.frame}: score {of.score:.3f}, tokens {kept}, {', '.join(FILES)} in {out}")
    return 0
