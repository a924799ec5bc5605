"""The documents say what is: their commands run, their tables are the code's, their map is the tree."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from bigmodel import demonstration, pipeline
from bigmodel.demonstration import DEMOS
from bigmodel.errors import ConfigError

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text("utf-8")
DOCUMENTS = ["README.md", "ARCHITECTURE.md", "CHANGELOG.md", "docs/log.md", "docs/speed.md"]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def commands(text: str) -> list[str]:
    """The lines of all shell blocks, continued lines joined, comments left out."""
    lines = "\n".join(blocks(text, "sh")).replace("\\\n", " ").splitlines()
    return [line for line in (line.partition("  #")[0].strip() for line in lines) if line and line[0] != "#"]


def section(title: str) -> str:
    """The text of a README section, up to the next heading of its rank."""
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", README, re.DOTALL | re.MULTILINE)
    assert found, f"the README has no section '{title}'"
    return found[1]


# ---- the commands


def bigmodel_arguments() -> Iterator[list[str]]:
    """Of every `bigmodel ...` in the README's shell blocks, also behind `ray job submit ... --`."""
    for command in commands(README):
        words = shlex.split(command, comments=True)
        if "bigmodel" in words:
            arguments = words[words.index("bigmodel") + 1 :]
            yield arguments[: next((i for i, word in enumerate(arguments) if word in ("&", "|", ">")), None)]


@pytest.mark.parametrize("arguments", list(bigmodel_arguments()), ids=" ".join)
def test_the_command_line_takes_what_the_readme_types(arguments):
    from bigmodel.__main__ import app

    group: Any = typer.main.get_command(app)
    verb, *rest = arguments
    if verb.startswith("--"):
        assert any(verb in parameter.opts for parameter in group.params) or verb == "--help"
        return
    assert verb in group.commands, f"there is no verb {verb}"
    group.commands[verb].make_context(verb, rest)  # raises on an option or argument that does not exist


def test_the_readme_names_every_verb_and_every_option():
    from bigmodel.__main__ import app

    group: Any = typer.main.get_command(app)
    for verb, command in group.commands.items():
        assert f"bigmodel {verb}" in README, f"{verb} is nowhere in the README"
        for option in [opt for parameter in command.params for opt in parameter.opts if opt.startswith("--")]:
            assert option in README, f"{verb} {option} is nowhere in the README"


def test_make_knows_every_target_the_readme_types():
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    for command in commands(README):
        if command.startswith("make "):
            assert command.split()[1] in targets, command


@pytest.fixture(scope="module")
def folder(tmp_path_factory, reviews) -> Path:
    """Where a reader of the README stands: the experiment file of `Five minutes`, and small files of reviews."""
    folder = tmp_path_factory.mktemp("readme")
    text = blocks(section("Five minutes"), "yaml")[0]
    (folder / "reviews.yaml").write_text(text)
    data = yaml.safe_load(text)["data"]
    for seed, name in enumerate([data["train"], "test.csv", "new.csv"]):
        written = reviews(folder / "plain.csv", 240 if seed == 0 else 40, seed).read_text("utf-8")
        header = f"{data['text']},{data['label']}"
        (folder / name).write_text(written.replace("text,label", header, 1), "utf-8")
    return folder


def environment() -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {"PATH": path}


@pytest.mark.timeout(600)
def test_the_five_minutes_of_the_readme_run_as_they_stand(folder):
    lines = [line for line in commands(section("Five minutes")) if not line.startswith("ray job submit")]
    assert [line.split()[1] for line in lines[:3]] == ["train", "evaluate", "predict"]
    port = str(free_port())
    lines = [line.replace("8000", port) for line in lines]
    with_endpoint = lines.index(next(line for line in lines if line.startswith("bigmodel serve")))
    for line in lines[:with_endpoint]:
        run(line, folder)
    assert "accuracy" in json.loads((folder / "runs/reviews/report.json").read_text("utf-8"))["metrics"]
    answers = [json.loads(line) for line in (folder / "answers.jsonl").read_text("utf-8").splitlines()]
    assert len(answers) == 40 and all(answer["label"] in ("good", "bad") for answer in answers)

    command = shlex.split(lines[with_endpoint])
    server = subprocess.Popen(command, cwd=folder, env=environment(), stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        said = next((line for line in server.stdout if "answers at" in line), "the endpoint did not start")
        assert f":{port}/models/reviews/predict" in said
        for line in lines[with_endpoint + 1 :]:
            answer = json.loads(run(line, folder))
            assert answer["label"] in ("good", "bad")
    finally:
        server.send_signal(signal.SIGINT)
        server.communicate(timeout=60)
    assert server.returncode == 0

    for program in blocks(README, "python"):
        run(f"python -c {shlex.quote(program)}", folder)


def run(line: str, folder: Path) -> str:
    done = subprocess.run(line, shell=True, cwd=folder, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    return done.stdout


def free_port() -> int:
    from serve_app.ray_host import free_ports

    return free_ports(1)[0]


@pytest.mark.timeout(300)
def test_the_demonstration_walks_the_whole_path(tmp_path):
    """With fewer reviews and one epoch: an edited experiment file is used as it is."""
    program = f"""
from pathlib import Path
from bigmodel import demonstration
from bigmodel.demos import text_classification as demo
demo.ROWS, demo.NEW_ROWS = 400, 20
demo.EXPERIMENT = demo.EXPERIMENT.replace("epochs: 5", "epochs: 1")
demonstration.walk(None, None, {free_port()})
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False
    )
    said = done.stdout
    assert done.returncode == 0, said + done.stderr
    for number in range(1, 6):
        assert f"[{number}/5]" in said
    assert "linear baseline" in said and "equal: every word" in said
    assert (tmp_path / "runs/demo/new.csv").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("task", DEMOS)
def test_every_demonstration_walks_the_whole_path_as_it_is(task, tmp_path):
    said = run(f"{sys.executable} -m bigmodel demo {task}", tmp_path)
    assert "[5/5]" in said and "equal: every word" in said


@pytest.mark.parametrize("task", DEMOS)
def test_every_demonstration_trains_on_the_data_it_writes_and_answers_its_questions(task, tmp_path, monkeypatch):
    """With less data and one epoch."""
    demo = demonstration.demo_of(task)
    for name, less in {"ROWS": 400, "NEW_ROWS": 20, "CHARACTERS": 20_000}.items():
        if name in vars(demo):
            monkeypatch.setattr(demo, name, less)
    file, _ = demonstration.write_experiment(demo, tmp_path)
    trained = pipeline.train(file, ["train.epochs=1"], fresh=True)
    answers = demonstration.predicted(demo, trained.model)
    assert all(demo.shown(question, answer) for question, answer in zip(demo.QUESTIONS, answers, strict=True))


def test_every_demonstration_has_a_folder_of_its_own_and_is_named_by_the_help():
    folders = [demonstration.place(task, None) for task in (None, *DEMOS)]
    assert folders[0] == Path("runs/demo") and len(set(folders)) == 1 + len(DEMOS)
    assert demonstration.place("translation", "here") == Path("here")
    said = " ".join(run(f"{sys.executable} -m bigmodel demo --help", ROOT).split())
    assert all(task in said for task in DEMOS)


def test_the_demonstration_does_not_delete_another_run(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(ConfigError, match="not the demonstration's"):
        demonstration.write_experiment(demonstration.demo_of("text-classification"), tmp_path)


# ---- the tables


def test_the_tables_are_those_of_the_code():
    sys.path.insert(0, str(ROOT / "docs"))
    import tables

    assert set(re.findall(r"<!-- table: (\w+) -->", README)) == set(tables.TABLES)
    assert tables.filled(README) == README, "out of date: .venv/bin/python docs/tables.py"
    assert not re.findall(r"^\| .*\|  \|$", README, re.MULTILINE), "a field without a meaning: give it a docstring"


def test_the_tables_show_code_as_it_is_and_meanings_to_their_end():
    assert not re.findall(r"`[^`\n]*&lt;[^`\n]*`", README)
    assert "so that about 14 stand along the shorter side" in README, "the second line of a field's meaning"


def test_the_model_of_each_task_is_in_the_readme():
    from bigmodel.experiment import DEFAULT_TYPES

    [line] = [line for line in README.splitlines() if line.startswith("| `model` | `{}`")]
    assert all(f"a {name} for" in line for name in DEFAULT_TYPES.values())


def test_the_options_that_the_readme_gives_serve_are_options():
    said = run(f"{sys.executable} -m bigmodel serve --help", ROOT)
    assert "`--max-body-bytes`" in README and "--max-body-bytes" in said


def test_every_architecture_is_in_the_readme():
    from bigmodel import models

    for name in [*models.architectures("text-classification"), *models.architectures("image-classification")]:
        assert f"`{name}`" in README, name


def test_every_recipe_is_in_the_readme():
    for recipe in (ROOT / "bigmodel/recipes").glob("*.yaml"):
        assert recipe.name in README, recipe.name


def test_every_experiment_of_the_readme_is_one():
    from bigmodel import pipeline
    from bigmodel.experiment import validate
    from bigmodel.yaml_lines import parse

    found = [block for block in blocks(README, "yaml") if "task:" in block]
    assert found
    for block in found:
        tree, lines = parse(block, "README.md")
        validate(tree, lines, "README.md", pipeline.check)


def test_every_serve_file_of_the_readme_is_one():
    from ray.serve.schema import ServeDeploySchema

    from serve_app.options import read_options

    found = [yaml.safe_load(block) for block in blocks(README, "yaml") if "applications:" in block]
    assert found
    for config in found:
        for application in ServeDeploySchema.model_validate(config).applications:
            assert application.import_path == "serve_app.app:build"
            read_options(application.args)


# ---- the map


def tracked() -> set[str]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("this is no git checkout: nothing says which files belong to it")
    return {name for name in listed.stdout.splitlines() if (ROOT / name).exists()}


def mapped() -> Iterator[tuple[str, str]]:
    """(path, phrase) of every line of ARCHITECTURE's map; a folder ends in a slash, what is in it is indented."""
    folders: list[str] = []
    for line in blocks(ARCHITECTURE, "text")[-1].splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        name, _, phrase = line.strip().partition(" ")
        del folders[depth:]
        if name.endswith("/"):
            folders.append(name)
        yield "".join([*folders, "" if name.endswith("/") else name]), phrase.strip()


def test_the_map_names_every_file_and_nothing_else():
    """A folder with a phrase stands for all in it; files without a word to say (empty __init__) are not listed."""
    lines = dict(mapped())
    named = {path for path in lines if not path.endswith("/")}
    empty = [path for path in lines if path.endswith("/") and not any(p.startswith(path) and p != path for p in lines)]
    files = {path for path in tracked() if (ROOT / path).stat().st_size or not path.endswith("__init__.py")}
    within = {path for path in files if any(path.startswith(folder) for folder in empty)}
    assert sorted(files - named - within) == [], "not in ARCHITECTURE's map"
    assert sorted(named - files) == [], "in ARCHITECTURE's map, but not in the tree"
    assert all(any(path.startswith(folder) for path in files) for folder in empty)
    assert all(phrase for path, phrase in lines.items() if path in named), "a file without its phrase"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_link_within_the_project_leads_somewhere(document):
    text = (ROOT / document).read_text("utf-8")
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert ((ROOT / document).parent / target).exists(), f"{document} links to {target}"


def test_ci_runs_the_test_command_of_the_readme():
    assert "make test" in commands(README)
    script = ROOT / ".ci/run"
    assert "make test" in script.read_text() and os.access(script, os.X_OK)
