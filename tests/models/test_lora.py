"""LoRA: what is trained, what is saved, who opens it, and what is refused."""

import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from contract import members
from contract.members import Member
from safetensors.torch import load_file, save_file

from bigmodel import models, pipeline
from bigmodel.errors import CheckpointError, ConfigError
from bigmodel.experiment import Experiment
from bigmodel.predictor import Predictor
from bigmodel.training.checkpoint import Checkpoints
from bigmodel.training.fit import fit

CASES: dict[str, dict[str, Any]] = {
    "text-classification": {"pretrained": members.tiny_bert, "lora": {"rank": 4}},
    "text-generation": {"pretrained": members.tiny_gpt2, "lora": {"rank": 4, "targets": ["c_attn"]}},
    "image-classification": {"pretrained": members.tiny_vit, "lora": {"rank": 4, "alpha": 8}},
}


def trained(task: str, folder: Path, base: Any = None, **lora: Any) -> tuple[Experiment, Predictor]:
    section = CASES[task] | {"lora": CASES[task]["lora"] | lora} | ({"pretrained": base} if base else {})
    tree = Member("lora", task, section).experiment(folder)
    tree["train"] |= {"epochs": 4, "validate_every": 6}
    experiment = Experiment.model_validate(tree)
    assert pipeline.check(tree) == []
    return experiment, Predictor.load(fit(experiment).model)


@pytest.mark.parametrize("task", CASES)
def test_the_adapter_alone_is_trained_and_saved(task, tmp_path):
    experiment, predictor = trained(task, tmp_path)
    folder = experiment.output_path / "model"
    assert {path.name for path in folder.glob("*.safetensors")} == {"adapter_model.safetensors"}
    assert not list(folder.rglob("README.md"))
    base = load_file(Path(experiment.model["pretrained"]) / "model.safetensors")
    newest, _ = Checkpoints(str(experiment.output_path / "checkpoints")).latest("step-")
    assert newest is not None
    kept = {name.replace(".base_layer", "") for name in newest.tensors["model"]}
    assert any("lora_A" in name for name in kept) and not kept & {*base, *(f"bert.{name}" for name in base)}
    stored = sum(tensor.numel() for tensor in load_file(folder / "adapter_model.safetensors").values())
    assert stored < sum(tensor.numel() for tensor in base.values()) / 2
    assert predictor.check_golden() > 0


@pytest.mark.parametrize("task", CASES)
def test_merged_it_answers_as_the_adapter_beside_its_base(task, tmp_path):
    experiment, beside = trained(task, tmp_path / "a")
    _, whole = trained(task, tmp_path / "b", experiment.model["pretrained"], merge=True)
    folder = tmp_path / "b" / "run" / "model"
    assert (folder / "model.safetensors").is_file() and (folder / "adapter" / "adapter_model.safetensors").is_file()
    before, after = beside.model.state_dict(), whole.model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert not any("lora" in name for name in before)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of peft, about a name that transformers is to change
def test_peft_opens_it_beside_its_base(tmp_path):
    experiment, predictor = trained("text-generation", tmp_path)
    base = transformers.AutoModelForCausalLM.from_pretrained(experiment.model["pretrained"])
    ids = torch.randint(4, 200, (2, 12), generator=torch.Generator().manual_seed(0))
    opened = peft.PeftModel.from_pretrained(base, str(experiment.output_path / "model")).eval()
    with torch.inference_mode():
        torch.testing.assert_close(opened(ids).logits, predictor.model(ids).logits, rtol=0, atol=1e-5)


def test_it_is_another_model_than_its_base(tmp_path):
    experiment, predictor = trained("text-generation", tmp_path)
    base = load_file(Path(experiment.model["pretrained"]) / "model.safetensors")
    now = predictor.model.state_dict()
    moved = {name for name in base if not torch.equal(base[name], now[name])}
    assert moved and all("c_attn.weight" in name for name in moved)


def test_a_base_that_changed_since_is_noticed(tmp_path):
    experiment, predictor = trained("text-classification", tmp_path)
    base = Path(experiment.model["pretrained"])
    tensors = load_file(base / "model.safetensors")
    name = next(name for name in tensors if "query.weight" in name)
    tensors[name][0, 0] += 1e-6
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="not the weights that the adapter .* was trained beside"):
        Predictor.load(experiment.output_path / "model")
    shutil.rmtree(base)
    with pytest.raises(CheckpointError, match="does not open: the model it adapts is not at"):
        Predictor.load(experiment.output_path / "model")


def test_it_needs_a_checkpoint():
    found = models.problems({"type": "lstm", "lora": {"rank": 8}}, "text-classification")
    assert found == [("lora", "model.lora adapts a checkpoint (model.pretrained); type lstm has none")]


def test_its_fields_are_checked(tmp_path):
    source = members.tiny_bert(tmp_path / "bert")

    def said(lora: object) -> str:
        (found,) = models.problems({"pretrained": source, "lora": lora}, "text-classification")
        assert found[0] == "lora"
        return found[1]

    assert said({"rnk": 8}).startswith("model.lora has no field 'rnk'. Did you mean 'rank'? Fields: rank, alpha")
    assert said({"rank": 0}) == "model.lora.rank is 0, but must be a whole number above 0"
    assert said({"dropout": 1}) == "model.lora.dropout is 1, but must be a number from 0 to below 1"
    assert said({"targets": "q_proj"}) == "model.lora.targets is 'q_proj', but must be a list of words"
    assert said(8) == "model.lora is 8, but must be a section, such as {rank: 8}"


def test_targets_that_are_not_there_are_named_with_those_that_are(tmp_path):
    with pytest.raises(ConfigError, match=r"nothing here is called q_proj. Maps: dense, key, query, value"):
        trained("text-classification", tmp_path, targets=["q_proj"])


def test_weights_in_pickles_are_not_read(tmp_path):
    experiment, _ = trained("text-classification", tmp_path)
    folder = experiment.output_path / "model"
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(CheckpointError, match="it has no adapter_model.safetensors; other formats are not read"):
        Predictor.load(folder)


def test_its_base_is_found_from_another_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    members.tiny_bert(tmp_path / "bert")
    experiment, predictor = trained("text-classification", tmp_path / "work", "bert")
    monkeypatch.chdir("/")
    again = Predictor.load(experiment.output_path / "model")
    assert again.check_golden() > 0


def test_the_head_is_trained_whole_whoever_drew_it(tmp_path):
    _, merged = trained("text-classification", tmp_path / "a", merge=True)
    experiment, again = trained("text-classification", tmp_path / "b", str(tmp_path / "a" / "run" / "model"))
    saved = load_file(experiment.output_path / "model" / "adapter_model.safetensors")
    assert {name for name in saved if "classifier" in name} == {
        "base_model.model.classifier.weight",
        "base_model.model.classifier.bias",
    }
    assert again.check_golden() > 0 and merged.check_golden() > 0


def test_an_adapter_is_no_base(tmp_path):
    experiment, _ = trained("text-classification", tmp_path)
    source = str(experiment.output_path / "model")
    found = models.problems({"pretrained": source}, "text-classification")
    assert found == [
        (
            "pretrained",
            f"model.pretrained: {source} is a LoRA adapter without its base: train it with model.lora.merge: true",
        )
    ]


def test_what_has_no_linear_maps_is_refused(tmp_path):
    tree = Member("lstm", "text-classification", {"type": "lstm", **members.RECURRENT}).experiment(tmp_path)
    tree["train"] |= {"epochs": 1, "validate_every": 0}
    base = fit(Experiment.model_validate(tree)).model
    with pytest.raises(ConfigError, match="a lstm has no linear maps that it could adapt"):
        trained("text-classification", tmp_path / "b", str(base))
