"""Golden schedules: the official cosine, warm-up and teacher temperature, step by step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ood_jax.schedules import cosine, stairs, warmup_cosine


@pytest.fixture(scope="module")
def g(golden):
    return golden("schedules")


def _values(schedule, count):
    return jax.jit(jax.vmap(schedule))(jnp.arange(count))


def _close(schedule, expected):
    np.testing.assert_allclose(_values(schedule, len(expected)), expected, rtol=1e-6, atol=1e-12)


def test_learning_rate(g):
    per_epoch, epochs = int(g["iters_per_epoch"]), int(g["epochs"])
    peak = float(g["base_lr"]) * int(g["batch_size"]) / 256
    warmup = int(g["warmup_epochs"]) * per_epoch
    schedule = warmup_cosine(peak, float(g["min_lr"]), warmup=warmup, steps=epochs * per_epoch)
    _close(schedule, g["lr"])


def test_weight_decay_and_momentum(g):
    steps = len(g["wd"])
    _close(cosine(float(g["wd_start"]), float(g["wd_end"]), steps), g["wd"])
    _close(cosine(float(g["momentum_start"]), 1.0, steps), g["momentum"])


def test_teacher_temperature(g):
    schedule = stairs(
        float(g["teacher_temp_start"]),
        float(g["teacher_temp_end"]),
        epochs=int(g["teacher_temp_warmup_epochs"]),
        steps_per_epoch=1,
    )
    _close(schedule, g["teacher_temp"])
