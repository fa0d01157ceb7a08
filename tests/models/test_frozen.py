"""configs/pretrained_knn.py from a file of weights to results, without a step of training."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from published import resnet, vit
from small_run import tiny_config, write_images
from torch_writer import Storages, ordered

from ood_jax import loop, main
from ood_jax.checkpoint import restore_for_scoring
from ood_jax.models.torch_names import RESNET, in_torch_layout
from ood_jax.train import init_state, prepare

ROOT = Path(__file__).resolve().parents[2]


def _weights(folder, arrays) -> str:
    storages = Storages()
    root = ordered({name: storages.add(x) for name, x in arrays.items()})
    (folder / "w.pth").write_bytes(storages.zip(root))
    return str(folder / "w.pth")


def _arguments(tmp_path, *more) -> list[str]:
    flags = {
        "model.width": 8,
        "model.image_size": 16,
        "data.size": 16,
        "head.outputs": 5,
        "data.train": write_images(tmp_path, "good", 24),
        "data.test": write_images(tmp_path, "more", 12, 1),
        "score.far": "others=" + write_images(tmp_path, "others", 10, 2),
        "score.batch": 8,
    }
    recipe = f"--config={ROOT / 'configs/pretrained_knn.py'}:resnet18"
    flags = [f"--config.{key}={value}" for key, value in flags.items()]
    return [recipe, *flags, f"--workdir={tmp_path / 'w'}", *more]


def test_a_run_without_training(tmp_path, capsys):
    arrays = resnet(18, 8, 5)
    argv = _arguments(tmp_path, f"--config.model.weights={_weights(tmp_path, arrays)}")
    assert main.main(argv) == 0, capsys.readouterr().err
    restored = restore_for_scoring(str(tmp_path / "w"))
    assert restored.step == 0
    for name, x in arrays.items():
        if "num_batches" not in name:
            tree = restored.stats if "running" in name else restored.params
            np.testing.assert_array_equal(in_torch_layout(tree, name, RESNET), x)
    results = json.loads((tmp_path / "w" / "results.json").read_text())
    assert results["step"] == 0
    assert 0 <= results["sets"]["others"]["knn"]["auroc"] <= 1
    assert results["config"]["train"]["steps"] == 0
    assert main.main(argv) == 0, capsys.readouterr().err  # the same command finds its checkpoint
    assert json.loads((tmp_path / "w" / "results.json").read_text()) == results


@pytest.mark.parametrize(
    ("flag", "says"),
    [
        ("--config.name=x", "error: method frozen trains nothing: give the network's weights"),
        ("--config.model.weights=gone.pth", "error: model.weights = 'gone.pth': no such file"),
        ("--config.model.weights={file}", "is of another network. its shapes are others: head"),
    ],
)
def test_mistakes_are_told_before_any_compute(tmp_path, capsys, flag, says):
    file = _weights(tmp_path, resnet(18, 8, 7))
    assert main.main(_arguments(tmp_path, flag.format(file=file))) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1
    assert not (tmp_path / "w").exists()


@pytest.mark.slow
def test_any_method_may_begin_with_a_published_trunk(tmp_path):
    config = tiny_config(tmp_path / "data")
    arrays = vit(8, 1, 8, 2)
    config.model.weights = _weights(tmp_path, arrays)
    state = init_state(prepare(config))
    np.testing.assert_array_equal(state.params["trunk"]["cls"], arrays["cls_token"])
    teacher = state.teacher["params"]
    jax.tree.map(np.testing.assert_array_equal, teacher, state.params)
    assert set(state.params["head"]) == {"mlp_0", "mlp_1", "last"}
    config.train.steps = 1
    assert int(loop.train(prepare(config), str(tmp_path / "w")).step) == 1
