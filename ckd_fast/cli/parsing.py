"""What the subcommands share: their declaration, argument types, and common options."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING, Any, NoReturn, TextIO, TypeAlias, TypeVar

from ckd_fast.reference.config import PRESETS

if TYPE_CHECKING:
    from ckd_fast.config import TrackerConfig
    from ckd_fast.datasets.sequences import Dataset
    from ckd_fast.multi import MultiTracker
    from ckd_fast.tracker import Tracker

    Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001

EXIT_INTERRUPTED = 130
AnyTracker = TypeVar("AnyTracker", bound="Tracker | MultiTracker")


class OneLineParser(argparse.ArgumentParser):
    """Reports an error in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"ckd-fast: {message} (see {self.prog} --help)\n")


def add_command(commands: Commands, name: str, summary: str, examples: str) -> argparse.ArgumentParser:
    """Declare a subcommand; its help shows the summary and the examples."""
    return commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def silence(stream: TextIO) -> None:
    """Discard all further output, buffered output too: the reader of the pipe has left."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def say(text: str) -> None:
    """Print. A closed pipe or a character that the terminal cannot show must not fail the command."""
    if sys.stdout is None:  # the caller closed it
        return
    encoding = sys.stdout.encoding or "utf-8"
    try:
        print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)
    except BrokenPipeError:
        silence(sys.stdout)


class Messages:
    """Standard error that ignores a closed pipe, so that a remark or a progress bar cannot fail the command."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            silence(self._stream)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            silence(self._stream)


def box(text: str) -> tuple[float, float, float, float]:
    """x,y,w,h in pixels."""
    try:
        values = [float(value) for value in text.split(",")]
    except ValueError:
        values = []
    if len(values) != 4:
        raise argparse.ArgumentTypeError(f"{text!r}: expected x,y,w,h in pixels, for example 120,80,40,90")
    return values[0], values[1], values[2], values[3]


def size(text: str) -> tuple[int, int]:
    """WIDTHxHEIGHT in pixels."""
    width, _, height = text.partition("x")
    if not (width.isdigit() and height.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r}: expected WIDTHxHEIGHT, for example 640x480")
    return int(width), int(height)


def positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number from 1")
    return int(text)


def not_negative(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number from 0")
    return int(text)


def add_dataset_options(parser: argparse.ArgumentParser) -> None:
    from pathlib import Path

    from ckd_fast.datasets.layouts import DATASETS

    group = parser.add_argument_group("data set")
    group.add_argument(
        "--dataset", choices=DATASETS, required=True, metavar="NAME", help=f"{', '.join(DATASETS)} (your own sequences)"
    )
    group.add_argument(
        "--root", type=Path, metavar="DIR", help="the data set's folder (default: from its environment variable)"
    )
    group.add_argument("--sequences", nargs="+", metavar="NAME", help="use only these sequences (default: all)")


def chosen_dataset(options: argparse.Namespace) -> Dataset:
    """Open the data set that the options of `add_dataset_options` name, and print its remarks."""
    from ckd_fast.datasets import open_dataset

    dataset = open_dataset(options.dataset, options.root)
    for remark in dataset.remarks:
        sys.stderr.write(f"ckd-fast: {remark}\n")
    return dataset.select(tuple(options.sequences)) if options.sequences else dataset


def add_weights_options(parser: argparse._ActionsContainer, kinds: str = ".safetensors, .pth.tar") -> None:
    """Options of the weights, which `load_model` takes."""
    parser.add_argument(
        "--weights", metavar="FILE", help=f"weights file ({kinds}), or 'random' (default: the packaged model)"
    )
    parser.add_argument("--model", metavar="PRESET", help=f"preset, if the file does not say: {', '.join(PRESETS)}")
    parser.add_argument("--seed", type=not_negative, metavar="N", help="seed of random weights (default: 0)")


def add_model_options(parser: argparse.ArgumentParser, threads: int | None = None) -> None:
    """Options of the weights and the engine; `new_tracker` reads them. `threads` is the default of `--threads`."""
    group = parser.add_argument_group("model")
    add_weights_options(group, ".safetensors, .pth.tar, or .onnx as exported")
    group.add_argument(
        "--engine", choices=("auto", "reference", "compiled", "openvino", "onnx", "triton"), default="auto",
        help="how the network runs (default: auto, the fastest that works here)",
    )  # fmt: skip
    group.add_argument(
        "--device",
        default="auto",
        help="auto, cpu, cuda, cuda:N, or for .onnx files a provider such as tensorrt (default: auto)",
    )
    group.add_argument(
        "--dtype",
        choices=("float32", "float16", "bfloat16", "int8", "float8"),
        help="precision (default: the engine's)",
    )
    group.add_argument(
        "--threads", type=positive, default=threads, metavar="N",
        help=f"threads that the network uses on a CPU (default: {threads or 'one per core'})",
    )  # fmt: skip
    group.add_argument(
        "--without", nargs="+", choices=("graphs", "overlap"), default=(), metavar="PART",
        help="what engine triton does without, graphs or overlap, to find out what fails on a GPU",
    )  # fmt: skip


def new_tracker(kind: type[AnyTracker], options: argparse.Namespace, config: TrackerConfig | None = None) -> AnyTracker:
    """Build a tracker by the options of `add_model_options`."""
    return kind(
        options.weights, options.model, options.engine, options.device, options.dtype, config,
        seed=options.seed, threads=options.threads, without=options.without,
    )  # fmt: skip
