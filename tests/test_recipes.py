"""The recipes: each loads and its model builds; on the real data each keeps its word."""

from pathlib import Path

import pytest

from bigmodel import pipeline
from bigmodel.experiment import load
from bigmodel.training.fit import fit

RECIPES = Path(__file__).parent.parent / "bigmodel" / "recipes"
BARS = [  # recipe, metric of the test, the least of it, seconds that it may take
    ("waimai", "accuracy", 0.895, 900),
    ("thucnews", "accuracy", 0.900, 900),
    ("sst2", "accuracy", 0.80, 900),
    ("adult", "accuracy", 0.857, 900),
    ("mnist", "accuracy", 0.992, 1800),
    ("multi30k", "bleu_lower_tokens", 30.0, 7200),
    ("multi30k_long", "bleu_lower_tokens", 36.5, 28800),
]


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_recipe_loads_and_says_its_command(path):
    assert pipeline.read_experiment(path).output == f"runs/{path.stem}"
    assert f"bigmodel train bigmodel/recipes/{path.name}" in path.read_text("utf-8")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_shakespeare_has_at_most_1_70_nats(data_folder, tmp_path):
    source = data_folder / "lm_tinyshakespeare" / "input.txt"
    experiment = load(RECIPES / "shakespeare.yaml", [f"data.train={source}", f"output={tmp_path / 'run'}"])
    report = pipeline.test(experiment, fit(experiment))
    assert report["metrics"]["loss"] <= 1.70
    assert report["metrics"]["bits_per_byte"] < report["baselines"]["ngrams"]["bits_per_byte"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "metric", "bar"),
    [pytest.param(*of, id=of[0], marks=pytest.mark.timeout(seconds)) for *of, seconds in BARS],
)
def test_a_recipe_reaches_its_bar_and_the_linear_baseline(name, metric, bar, data_folder, tmp_path):
    recipe = load(RECIPES / f"{name}.yaml")
    sources = {
        split: str(data_folder / Path(source).relative_to("../shared/data"))
        for split in ("train", "valid", "test")
        if (source := getattr(recipe.data, split))
    }
    changes = [f"data.{split}={source}" for split, source in sources.items()]
    experiment = load(RECIPES / f"{name}.yaml", [*changes, f"output={tmp_path / 'run'}"])
    report = pipeline.test(experiment, fit(experiment))
    assert report["metrics"][metric] >= bar
    assert report["metrics"][metric] >= report["baselines"].get("linear", {}).get(metric, 0)  # not all tasks have one
