"""`ckd-fast train`: a training run from a recipe or a configuration file."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckd_fast.errors import InputError

from .parsing import EXIT_INTERRUPTED, add_command, not_negative, positive

if TYPE_CHECKING:
    from ckd_fast.training import Progress, TrainConfig

    from .parsing import Commands


def add_train(commands: Commands) -> None:
    parser = add_command(
        commands,
        "train",
        "train students and teachers by a recipe or a configuration file",
        "  ckd-fast train ckd --data LasHeR --init DropTrack_k700_800E.pth.tar --out runs/ckd\n"
        "  torchrun --nproc-per-node 2 -m ckd_fast train ckd --data LasHeR --init OSTrack_ep0300.pth.tar --out run\n"
        "  ckd-fast train my.json --init ckd.safetensors --out runs/mine     # fine-tune on your own data\n"
        "  ckd-fast train my.json --out runs/mine --resume\n"
        "  ckd-fast train ckd-paper --print > my.json                        # a configuration to start from\n"
        "  ckd-fast train --list\n"
        "Recipes, settings and the files of a run: docs/training.md",
    )
    parser.add_argument("config", nargs="?", metavar="CONFIG", help="name of a recipe, or a JSON file")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for log, checkpoints and weights")
    parser.add_argument(
        "--init", metavar="FILE", help="initial weights: a weights file, or 'random' (default: as configured)"
    )
    parser.add_argument(
        "--feature-teacher", metavar="FILE", help="ONNX backbone whose features the students imitate, where configured"
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="data folder; source roots are relative to it")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in --out")
    parser.add_argument("--seed", type=not_negative, metavar="N", help="seed (default: as configured)")
    parser.add_argument("--workers", type=not_negative, metavar="N", help="processes that read samples, for each GPU")
    parser.add_argument("--losses", choices=("reference", "fused"), help="how to compute the distillation terms")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument("--threads", type=positive, metavar="N", help="CPU threads of this process")
    parser.add_argument(
        "--tensorboard", action="store_true", help="also write TensorBoard events (needs ckd_fast[tensorboard])"
    )
    parser.add_argument("--print", action="store_true", dest="show", help="print the configuration as JSON and stop")
    parser.add_argument("--list", action="store_true", help="list the recipes and stop")
    parser.add_argument("--json", action="store_true", help="print the outcome as JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(run=run_train)


def configured(options: argparse.Namespace) -> TrainConfig:
    from ckd_fast.training import RECIPES, config_from_file, recipe

    if options.config is None:
        raise InputError(f"CONFIG is missing: expected a JSON file or one of the recipes {', '.join(RECIPES)}")
    path = Path(options.config)
    config = config_from_file(path) if path.suffix == ".json" or path.is_file() else recipe(options.config)
    named: dict[str, Any] = {
        "feature_teacher": options.feature_teacher,
        "init": options.init,
        "seed": options.seed,
        "workers": options.workers,
        "loss_engine": options.losses,
    }
    config = dataclasses.replace(config, **{name: value for name, value in named.items() if value is not None})
    if options.data is not None:
        sources = tuple(
            source if source.kind == "synthetic" else dataclasses.replace(source, root=str(options.data / source.root))
            for source in config.sources
        )
        config = dataclasses.replace(config, sources=sources)
    return config


def run_train(options: argparse.Namespace) -> int:
    from ckd_fast.training import RECIPES, Trainer, this_process

    if options.list:
        print("\n".join(RECIPES))
        return 0
    config = configured(options)
    if options.show:
        print(config.to_json())
        return 0
    if options.out is None:
        raise InputError("--out is missing: expected a folder for the run")
    import torch
    from tqdm import tqdm

    if options.threads:
        torch.set_num_threads(options.threads)
    process = this_process(options.device)
    board = None
    if options.tensorboard and process.first:
        from ckd_fast.training.logs import open_board

        board = open_board(options.out / "tensorboard")
    hidden = True if options.quiet or not process.first else None
    with tqdm(unit="pair", disable=hidden, smoothing=0.1) as bar:

        def show(progress: Progress) -> None:
            bar.total = progress.pairs_total
            bar.update(progress.pairs_done - bar.n)
            scored = f" IoU {progress.validation:.3f}" if progress.validation is not None else ""
            bar.set_postfix_str(
                f"{progress.stage}: loss {progress.loss:.3f}{scored} {progress.pairs_per_second:.0f} pairs/s "
                f"{progress.memory_mb:.0f} MB"
            )

        trained = Trainer(config, options.out, process, board=board, on_progress=show).run(resume=options.resume)
    code = EXIT_INTERRUPTED if trained.interrupted else 0
    if not process.first:
        return code
    if options.json:
        print(json.dumps({**dataclasses.asdict(trained), "final": str(trained.final)}))
        return code
    if trained.interrupted:
        sys.stderr.write(f"ckd-fast: interrupted; {trained.final} is complete: go on with --resume\n")
        return code
    print(f"{trained.final}: the student after {trained.steps} steps; best validation {trained.best:.3f}")
    if trained.bad_samples:
        sys.stderr.write(f"ckd-fast: {trained.bad_samples} samples could not be read; log.jsonl lists them\n")
    return 0
