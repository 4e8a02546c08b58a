"""The random streams of a run, by name.

A stream starts from (seed of the run, purpose, ...), so what one draws changes nothing in another, and resuming needs
no stored state. Other numbers give other runs: never change one.
"""

from __future__ import annotations

import numpy as np

SAMPLES = 1  # with stage, position of the sample, attempt
RENDERING = 2  # with stage, number of the batch; so are the next three
AUGMENTATION = 3
HIDDEN_PATCHES = 4
DROPPED_PATHS = 5
VALIDATION = 9  # with the number of the batch; its seed is VALIDATION_SEED, so every run is judged on the same pairs
VALIDATION_SEED = 0


def torch_seed(*stream: int) -> int:
    """A seed for a torch generator."""
    return int(np.random.SeedSequence(stream).generate_state(1, np.uint64)[0] >> np.uint64(1))
