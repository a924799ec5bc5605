"""What can be asked of a served model, and what is said to who asks for something else."""

import shutil

import pytest
from ray.serve.schema import ServeDeploySchema

from bigmodel.errors import CheckpointError, ConfigError, ResourceError
from bigmodel.predictor import Predictor
from serve_app.app import build
from serve_app.options import ServeOptions, read_options
from serve_app.replica import refuse_others
from serve_app.start import fit_machine, share_cpus


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ({}, "'model' is missing"),
        ({"model": "m", "max_replica": 3}, "there is no 'max_replica'. Did you mean 'max_replicas'?"),
        ({"model": "m", "min_replicas": 3}, r"max_replicas \(1\) is below min_replicas \(3\)"),
        ({"model": "m", "max_waiting": 10}, r"max_waiting \(10\) is below max_inputs \(64\)"),
        ({"model": "m", "max_replicas": 0}, "max_replicas is 0, but must be at least 1"),
        ({"model": "m", "precision": "fp8"}, "precision is 'fp8'. Known: auto, fp32, bf16"),
        ({"model": "m", "name": "a/b"}, "name may have letters"),
        ({"model": "m", "num_cpus": "two"}, "num_cpus is 'two', but must be a number"),
        ({"model": "m", "num_cpus": 0.00001}, "num_cpus is 1e-05, but may have 4 digits after the point"),
        ({"model": "m", "num_gpus": 1.5}, "num_gpus is 1.5, but must be a whole number where it is above 1"),
        (
            {"model": "m", "max_replicas": 2, "max_inputs": 4, "max_waiting": 8},
            r"target_ongoing_requests \(32\) is above twice max_waiting \(16\)",
        ),
    ],
)
def test_a_wrong_option_is_named(args, says):
    with pytest.raises(ConfigError, match=says):
        read_options(args)
    with pytest.raises(ConfigError, match=f"args: .*{says}"):
        build(args)


def test_all_mistakes_are_told_at_once():
    with pytest.raises(ConfigError) as told:
        read_options({"modle": "m", "max_replicas": 0, "num_gpus": -1})
    assert len(str(told.value).splitlines()) == 4


@pytest.mark.parametrize(
    ("model", "name", "word"),
    [
        ("runs/reviews/model", "", "reviews"),
        ("models/bert-base", "", "bert-base"),
        ("runs/reviews/model", "film", "film"),
        ("runs/my reviews (2)/model", "", "my-reviews-2"),
    ],
)
def test_a_model_is_called_like_its_run(model, name, word):
    assert ServeOptions(model=model, name=name).word == word


def test_more_replicas_than_a_machine_holds_are_refused_and_a_range_is_cut():
    said = []
    there = {"CPU": 2, "GPU": 0}
    asked = ServeOptions(model="m", max_replicas=4)
    assert fit_machine(asked, there, said.append).max_replicas == 2
    assert said == ["This machine has room for 2 of 4 replicas; there will not be more."]
    assert fit_machine(ServeOptions(model="m", max_replicas=4, num_cpus=0.5), there, said.append).max_replicas == 4
    with pytest.raises(ResourceError, match="3 replicas of 1 CPU each need 3; this machine has 2. Lower min_replicas"):
        fit_machine(ServeOptions(model="m", min_replicas=3, max_replicas=3), there, said.append)
    with pytest.raises(ResourceError, match="1 replicas of 1 GPU each need 1; this machine has 0"):
        fit_machine(ServeOptions(model="m", num_gpus=1), there, said.append)


@pytest.mark.parametrize(("num_cpus", "there", "most"), [(0, 2, 50), (0.1, 1, 10), (0.1, 2, 20), (1.1, 11, 10)])
def test_room_is_counted_as_ray_does(num_cpus, there, most):
    """1 // 0.1 is 9, and 1.1 * 10 above 11."""
    asked = ServeOptions(model="m", num_cpus=num_cpus, min_replicas=most, max_replicas=50)
    assert fit_machine(asked, {"CPU": there, "GPU": 0}, lambda _: None).max_replicas == most


def test_replicas_share_a_machine_that_is_theirs_alone():
    there = {"CPU": 8, "GPU": 0}
    for most, cpus in ((1, 8), (3, 2), (20, 1)):
        asked = share_cpus(ServeOptions(model="m", max_replicas=most), 8)
        assert asked.num_cpus == cpus and fit_machine(asked, there, print).max_replicas == min(most, 8)
    assert share_cpus(ServeOptions(model="m", num_cpus=0.5), 8).num_cpus == 0.5


def test_the_application_autoscales_as_asked():
    asked = build({"model": "runs/reviews/model", "min_replicas": 2, "max_replicas": 5})._bound_deployment
    scaling = asked._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas) == (2, 5)
    assert asked._replica_config.ray_actor_options["num_cpus"] == 1


def test_a_replica_answers_with_the_weights_that_were_deployed(make_model, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(make_model(), folder)
    options, weights, keys = build({"model": str(folder)})._bound_deployment.init_args
    assert keys == []
    refuse_others(Predictor.load(folder), weights)
    assert len(weights) == 1 and options.model == str(folder)
    shutil.rmtree(folder)
    shutil.copytree(make_model({"type": "lstm", "hidden_size": 8, "embedding_size": 8}), folder)  # trained again
    with pytest.raises(CheckpointError, match="is another one since it was deployed"):
        refuse_others(Predictor.load(folder), weights)
    refuse_others(Predictor.load(folder), {})


def test_a_serve_config_file_names_the_builder():
    file = {"applications": [{"name": "reviews", "import_path": "serve_app.app:build", "args": {"model": "m"}}]}
    assert ServeDeploySchema.model_validate(file).applications[0].args == {"model": "m"}
