"""cluster.yaml against Ray's own schema, offline, and against Ray's open defaults."""

import copy
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parent.parent
STARTS = ("head_start_ray_commands", "worker_start_ray_commands")


@pytest.fixture(scope="module")
def written() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def complete(written: dict[str, Any]) -> dict[str, Any]:
    """What `ray up` would work with: Ray's defaults filled in."""
    try:
        return prepare_config(copy.deepcopy(written))
    except SystemExit as e:  # Ray prints and exits where it should raise
        pytest.fail(f"Ray refuses cluster.yaml (exit {e.code})")


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def commands(config: dict[str, Any]) -> list[str]:
    return [command for key, value in config.items() if key.endswith("_commands") for command in value]


def test_ray_accepts_the_file(complete):
    validate_config(complete)


@pytest.mark.parametrize("key", ["max_worker", "providers"])
def test_ray_would_notice_a_misspelt_key(written, key):
    with pytest.raises(Exception, match=key):
        validate_config(prepare_config({**copy.deepcopy(written), key: 1}))


def test_nothing_listens_on_or_is_open_to_all_addresses(complete):
    assert re.findall(r"(?<![\d.])0\.0\.0\.0|::/0", yaml.safe_dump(complete)) == []


def test_every_ray_start_asks_for_the_token_and_reports_no_usage(complete):
    starts = [command for command in commands(complete) if re.search(r"\bray start\b", command)]
    assert len(starts) == len(STARTS)
    for command in starts:
        before = command.split("ray start")[0]
        assert "export" in before and "RAY_AUTH_MODE=token" in before and "RAY_USAGE_STATS_ENABLED=0" in before, command


def test_the_dashboard_is_on_loopback(complete):
    [head] = [command for command in commands(complete) if "--head" in command]
    assert "--dashboard-host=127.0.0.1" in head


def test_the_token_travels_as_a_private_file_and_is_not_in_the_file(written):
    assert written["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert "chmod 600 ~/.ray/auth_token" in written["setup_commands"][0]


def test_every_machine_is_in_a_security_group_of_the_users_own(complete):
    """A node type without SecurityGroupIds gets Ray's group: port 22 from everywhere, whatever IpPermissions say."""
    for name, node_type in complete["available_node_types"].items():
        config = node_type["node_config"]
        assert config["SecurityGroupIds"] == ["sg-EDIT-ME"], name
        assert config["ImageId"] == "ami-EDIT-ME", name
    assert "security_group" not in complete["provider"]


def test_every_node_installs_this_checkout_with_the_versions_of_pyproject(complete, project):
    from packaging.specifiers import SpecifierSet

    for key in ("head_setup_commands", "worker_setup_commands"):
        text = "\n".join(complete[key])
        assert "--editable ~/bigmodel-source" in text
        [python] = re.findall(r"--python (3\.\d+)", text)
        assert python in SpecifierSet(project["requires-python"])
    assert not re.search(r"\bray(\[\w+\])?[=<>@]", "\n".join(commands(complete))), "pyproject.toml says which Ray"
    [ray] = [line for line in project["dependencies"] if line.startswith("ray[")]
    assert "==" in ray


def test_what_is_copied_to_the_nodes_is_what_the_package_is_built_from(written, project):
    mounts = {local for remote, local in written["file_mounts"].items() if remote.startswith("~/bigmodel-source/")}
    packages = {p.parent.name for p in ROOT.glob("*/__init__.py") if p.parent.name != "tests"}
    assert mounts == packages | {"pyproject.toml", project["readme"]}
    assert all((ROOT / local).exists() for local in mounts)


def test_every_command_is_shell(complete):
    for command in commands(complete):
        subprocess.run(["bash", "-n", "-c", command], check=True, capture_output=True, text=True)
