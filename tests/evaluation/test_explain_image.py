"""Which pixels decided: the sum is right, the place is right, and the picture is kept where it was asked for."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from bigmodel import models, pipeline, tasks
from bigmodel.errors import ConfigError
from bigmodel.evaluation.explain_image import draw, explain
from bigmodel.experiment import Experiment
from bigmodel.predictor import Predictor


def png(pixels) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


ROWS = [
    {"image": png(np.random.default_rng(n).integers(0, 256, (16, 12, 3), dtype=np.uint8)), "label": "abc"[n % 3]}
    for n in range(6)
]


def size(file):
    with Image.open(file) as picture:
        return picture.size


def untaught(model_type):
    tree = {"task": "image-classification", "data": {"train": "-"}, "model": {"type": model_type}}
    experiment = Experiment.model_validate(tree)
    task = tasks.get(experiment.task)
    processor, learnt = task.fit(lambda: iter(ROWS), experiment)
    torch.manual_seed(1)
    model = models.build(experiment.model, learnt, experiment.task).eval()
    return Predictor(experiment.task, model, processor, {})


@pytest.mark.parametrize("model_type", ["cnn", "resnet", "vit"])
def test_the_weights_sum_to_what_the_image_adds_to_the_log_odds(model_type):
    predictor = untaught(model_type)
    for found, answer in zip(explain(predictor, ROWS[:2]), predictor.predict(ROWS[:2]), strict=True):
        difference = found["log_odds"] - found["log_odds_of_noise"]
        assert abs(found["sum_of_weights"] - difference) <= 0.01 * max(1.0, abs(difference))
        assert {name: found[name] for name in answer} == answer
        assert Image.open(io.BytesIO(found["picture"])).size[1] == 256


def test_a_pixel_that_decides_is_blue_and_one_that_speaks_against_is_red():
    weights = np.zeros((2, 16))
    weights[0, 0], weights[1, 15] = 2.0, -2.0
    picture = np.asarray(Image.open(io.BytesIO(draw(np.zeros((1, 2, 16), np.uint8), weights))))
    right = picture[:, -256:]
    assert tuple(right[0, 0]) == (20, 70, 230) and tuple(right[-1, -1]) == (230, 40, 20)
    assert tuple(right[0, -1]) == (255, 255, 255) and not picture[:, :256].any()


def test_the_command_draws_to_a_folder_or_a_file(tmp_path, capsys):
    untaught("cnn").save(tmp_path / "model")
    for n in range(2):
        (tmp_path / f"{n}.png").write_bytes(ROWS[n]["image"])
    files = [str(tmp_path / f"{n}.png") for n in range(2)]
    pipeline.predict(tmp_path / "model", files, tmp_path / "why", explain=True)
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["picture"] for one in said] == [str(tmp_path / "why" / name) for name in ("0001-0.png", "0002-1.png")]
    assert all(size(one["picture"])[0] > 256 and one["score"] for one in said)
    pipeline.predict(tmp_path / "model", files[:1], tmp_path / "one.png", explain=True)
    assert size(tmp_path / "one.png")[1] == 256
    with pytest.raises(ConfigError, match="Name a folder"):
        pipeline.predict(tmp_path / "model", files, tmp_path / "two.png", explain=True)
    pipeline.predict(tmp_path / "model", files[:1], explain=True)
    assert "name a folder or a .png" in " ".join(capsys.readouterr().out.split())
