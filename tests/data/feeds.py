"""Grain's worker processes against this one: the same batches."""

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import numpy as np
from ood_jax.data.pipeline import train_batches
from ood_jax.data.sources import open_source
if __name__ == '__main__':
    source = open_source('folder:{folder}')
    options = dict(size=6, seed=2, start_step=3, {options})
    auxiliary = source if {auxiliary} else None
    alone = train_batches(source, auxiliary, **options)
    shared = train_batches(source, auxiliary, workers=2, memory=0, **options)
    for _ in range(5):
        expected, got = next(alone), next(shared)
        assert expected.keys() == got.keys()
        for key in expected:
            np.testing.assert_array_equal(got[key], expected[key])
            assert type(got[key]) is type(expected[key])
    print('the same')
"""


def assert_processes_feed_the_same(program, folder, options, *, auxiliary=False):
    """`train_batches` of the images in `folder` with and without workers, in a new interpreter."""
    program.write_text(PROGRAM.format(folder=folder, options=options, auxiliary=auxiliary))
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(program)],
        capture_output=True, text=True, timeout=120, env=os.environ | {"PYTHONPATH": path},
    )  # fmt: skip
    assert done.stdout == "the same\n", done.stderr
    assert "Traceback" not in done.stderr  # nothing left open at the end
