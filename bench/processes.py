"""Several trackers in processes of their own, on the cores of one machine: do they share them?

    python bench/processes.py --processes 1 4 --engine openvino

Every process follows one target with the packaged model, as fast as it can, for the same seconds. The share is the
frames per second of all together over those of a process that runs alone: 1 is perfect.
"""

from __future__ import annotations

import itertools
import math
import multiprocessing
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from multiprocessing.synchronize import Event
from pathlib import Path

from common import BOX, ROOT, clip, machine, program, refuse, used, write_json

WARM_UP_SECONDS = 1.0


@dataclass(frozen=True)
class Row:
    """So many processes at once."""

    processes: int
    fps: float  # of all together
    share: float  # of what the first row's processes reach


def follow(engine: str, threads: int | None, begin: Event, stop: Event, told: Connection) -> None:
    """Track until told to stop. Tells 0 when warm, then how many frames it tracked; or why it cannot, in words."""
    from ckd_fast import CkdFastError, Tracker

    first, *others = clip(8)
    try:
        tracker = Tracker(engine=engine, device="cpu", threads=threads)
        tracker.init(*first, BOX)
    except CkdFastError as error:
        with suppress(BrokenPipeError):  # another one told the same, and the program has ended
            told.send(str(error))
        return
    pairs = itertools.cycle([*others, first])
    until = time.perf_counter() + WARM_UP_SECONDS
    while time.perf_counter() < until:
        tracker.box = BOX
        tracker.update(*next(pairs))
    told.send(0)
    begin.wait()
    count = 0
    while not stop.is_set():
        tracker.box = BOX
        tracker.update(*next(pairs))
        count += 1
    told.send(count)


def heard(worker: SpawnProcess, telling: Connection) -> int:
    """What a worker tells; if it failed, that ends the program, and with it the other workers."""
    try:
        told: int | str = telling.recv()
    except EOFError:
        worker.join()
        refuse(f"a process ended with exit code {worker.exitcode}")
    return told if isinstance(told, int) else refuse(told)


def together(processes: int, engine: str, threads: int | None, seconds: float) -> float:
    """Frames per second of all processes."""
    context = multiprocessing.get_context("spawn")
    begin, stop = context.Event(), context.Event()
    workers = []
    for _ in range(processes):
        ours, theirs = context.Pipe(duplex=False)
        worker = context.Process(target=follow, args=(engine, threads, begin, stop, theirs), daemon=True)
        worker.start()
        theirs.close()  # the worker has the only copy, so the pipe closes when it dies
        workers.append((worker, ours))
    for each in workers:
        heard(*each)
    begin.set()
    start = time.perf_counter()
    time.sleep(seconds)
    stop.set()
    elapsed = time.perf_counter() - start
    frames = sum(heard(*each) for each in workers)
    for worker, _ in workers:
        worker.join()
    return frames / elapsed


def main() -> None:
    parser = program(__doc__)
    parser.add_argument("--engine", default="auto", help="(default: auto)")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 4], metavar="N", help="(default: 1 4)")
    parser.add_argument("--threads", type=int, metavar="N", help="of each process (default: the engine's)")
    parser.add_argument("--seconds", type=float, default=10.0, metavar="S", help="of each measurement (default: 10)")
    parser.add_argument("--json", type=Path, default=ROOT / "out" / "processes.json", metavar="FILE")
    options = parser.parse_args()
    if min(options.processes) < 1 or not 0 < options.seconds < math.inf:
        refuse("--processes must be at least 1 and --seconds more than 0")
    rows: list[Row] = []
    about = machine("cpu")
    each = f"{options.threads or 'all'} threads each"
    print(f"engine {options.engine}, {each}; {about['device']}, {about['cores']} cores")
    for processes in options.processes:
        fps = together(processes, options.engine, options.threads, options.seconds)
        rows.append(Row(processes, fps, fps / (rows[0].fps if rows else fps)))
        print(f"{processes:>3} at once: {fps:8.1f} frames/s together, {rows[-1].share:.2f} of the first row")
    write_json(options.json, {"machine": about, "arguments": used(options), "rows": [asdict(r) for r in rows]})


if __name__ == "__main__":
    main()
