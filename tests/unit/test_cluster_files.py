"""The cluster files fit the schema of the installed Ray and the recipes, and hold no secrets."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml

from pipeline.cluster import growth
from pipeline.config import load_recipe, recipe_names

ROOT = Path(__file__).resolve().parents[2]
AWS = ROOT / "ray_cluster.yaml"
OWN = ROOT / "clusters" / "own_machines.yaml"
KUBERNETES = ROOT / "clusters" / "kubernetes.yaml"
ACCOUNT = ROOT / "clusters" / "aws_account.yaml"
SCRIPT = ROOT / "clusters" / "set_up_node.sh"
CONSTRAINTS = dict(
    re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE)
)


def load(path: Path) -> dict[str, Any]:
    """Reads YAML; CloudFormation's short functions (!Sub) read as text."""
    loader = type("Loader", (yaml.SafeLoader,), {})
    loader.add_multi_constructor("!", lambda loader, tag, node: f"!{tag} {node.value}")
    return yaml.load(path.read_text(), Loader=loader)


def commands(config: dict[str, Any]) -> list[str]:
    return [line for key, lines in config.items() if key.endswith("_commands") for line in lines]


@pytest.mark.parametrize("path", [AWS, OWN], ids=lambda path: path.name)
def test_fits_the_schema_of_the_installed_ray(path):
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(load(path), schema)


@pytest.mark.parametrize("path", [AWS, OWN], ids=lambda path: path.name)
def test_ray_itself_prepares_and_accepts_it(path):
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(load(path))
    validate_config(prepared)
    assert prepared["head_node_type"] in prepared["available_node_types"]


def test_the_pinned_ray_is_the_tested_one():
    assert ray.__version__ == CONSTRAINTS["ray"]
    assert load(KUBERNETES)["spec"]["rayClusterSpec"]["rayVersion"] == CONSTRAINTS["ray"]


@pytest.mark.parametrize("path", [AWS, OWN], ids=lambda path: path.name)
def test_all_that_is_mounted_exists_and_nothing_else_of_the_checkout_is(path):
    mounts = load(path)["file_mounts"]
    for remote, local in mounts.items():
        assert remote.startswith("~/")
        assert local.startswith("~/.ray/") or (ROOT / local).exists(), local
    folders = {local for local in mounts.values() if (ROOT / local).is_dir()}
    assert folders == {"d2ls", "sharding", "pipeline", "recipes", "clusters"}
    assert "~/.ray/auth_token" in mounts


def test_keys_go_into_a_mounted_file_and_never_into_a_line_that_ray_prints():
    text = OWN.read_text()
    assert "# ~/.aws/credentials: ~/.aws/credentials" in text
    assert "ACCESS_KEY" not in text + SCRIPT.read_text()


@pytest.mark.parametrize("path", [AWS, OWN, KUBERNETES, ACCOUNT, SCRIPT], ids=lambda path: path.name)
def test_holds_no_keys(path):
    text = path.read_text()
    assert not re.search(r"AKIA[0-9A-Z]{16}|BEGIN [A-Z ]*PRIVATE KEY|hf_[A-Za-z0-9]{20}|[0-9a-f]{64}", text)
    assert not re.search(r"(SECRET_ACCESS_KEY|PASSWORD|TOKEN)=[^$\s]*[A-Za-z0-9]{8}", text)


def test_nothing_is_open_to_the_world():
    account = load(ACCOUNT)["Resources"]
    rules = [item for item in account.values() if item["Type"] == "AWS::EC2::SecurityGroupIngress"]
    assert [rule["Properties"]["SourceSecurityGroupId"] for rule in rules] == ["!GetAtt Group.GroupId"]
    assert "SecurityGroupIngress" not in account["Group"]["Properties"]
    assert "0.0.0.0/0" not in ACCOUNT.read_text() + AWS.read_text()
    # Without groups in the launch template Ray would make one that lets SSH in from everywhere.
    template = account["Node"]["Properties"]["LaunchTemplateData"]
    assert template["SecurityGroupIds"] == ["!GetAtt Group.GroupId"]
    name = account["Node"]["Properties"]["LaunchTemplateName"]
    config = load(AWS)
    for node in config["available_node_types"].values():
        assert node["node_config"]["LaunchTemplate"] == {"LaunchTemplateName": name}
    assert config["auth"]["ssh_proxy_use_node_id"] is True
    for path in (AWS, OWN):
        starts = [line for line in commands(load(path)) if "ray start --head" in line]
        assert all("--dashboard-host=127.0.0.1" in line for line in starts)
        assert len(starts) == 1


def test_ec2_permissions_reach_this_cluster_alone():
    config, account = load(AWS), load(ACCOUNT)["Resources"]
    statements = [
        statement
        for policy in account["Role"]["Properties"]["Policies"]
        for statement in policy["PolicyDocument"]["Statement"]
    ]
    ending = [item for item in statements if "ec2:TerminateInstances" in item["Action"]]
    assert [item["Condition"] for item in ending] == [
        {"StringEquals": {"ec2:ResourceTag/ray-cluster-name": config["cluster_name"]}}
    ]
    assert not any(
        action in ("*", "s3:*", "ec2:*", "iam:*") for item in statements for action in item["Action"]
    )


def test_the_head_may_start_the_first_spot_node_of_an_account():
    """Else: AuthFailure.ServiceLinkedRoleCreationNotPermitted, where nobody used spot nodes in the console before."""
    policies = load(ACCOUNT)["Resources"]["Role"]["Properties"]["Policies"]
    statements = [statement for policy in policies for statement in policy["PolicyDocument"]["Statement"]]
    (making,) = [item for item in statements if item["Action"] == ["iam:CreateServiceLinkedRole"]]
    assert making["Condition"] == {"StringEquals": {"iam:AWSServiceName": "spot.amazonaws.com"}}
    assert making["Resource"].endswith("/spot.amazonaws.com/AWSServiceRoleForEC2Spot")


def test_gpu_nodes_come_from_zero_spot_first_and_go_when_idle():
    config = load(AWS)
    workers = {name: node for name, node in config["available_node_types"].items() if name != "head"}
    assert all(node["min_workers"] == 0 and node["resources"]["GPU"] >= 1 for node in workers.values())
    markets = {name: node["node_config"].get("InstanceMarketOptions") for name, node in workers.items()}
    assert markets == {"gpu_spot": {"MarketType": "spot"}, "gpu_on_demand": None}
    assert workers["gpu_spot"]["priority"] > workers["gpu_on_demand"]["priority"]
    assert sum(node["max_workers"] for node in workers.values()) == config["max_workers"]
    assert 0 < config["idle_timeout_minutes"] <= 30
    assert "GPU" not in config["available_node_types"]["head"]["resources"]


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_fits_the_node_types(name):
    """One worker fits on a node, and all workers on the largest number of nodes."""
    cluster = load_recipe(name).cluster
    config = load(AWS)
    need = {"CPU": cluster.cpus_per_worker, "GPU": cluster.gpus_per_worker or 1}
    fitting = {
        kind: min(int(node["resources"].get(key, 0) / amount) for key, amount in need.items())
        for kind, node in config["available_node_types"].items()
    }
    assert max(fitting.values()) >= 1, f"no node type has {need}: {fitting}"
    places = sum(
        count * config["available_node_types"][kind].get("max_workers", 0) for kind, count in fitting.items()
    )
    assert places >= cluster.worker_range[0]
    group = load(KUBERNETES)["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert float(limits["cpu"]) >= cluster.cpus_per_worker


def test_the_whole_aws_cluster_is_known_to_a_sweep_that_finds_it_empty():
    assert growth.of_cluster_file(load(AWS)) == {"CPU": 4 + 12 * 8, "GPU": 12}


@pytest.mark.parametrize("path", [AWS, OWN], ids=lambda path: path.name)
def test_commands_call_scripts_that_exist_and_name_the_storage_once(path):
    config = load(path)
    named = [match for line in commands(config) for match in re.findall(r"~/d2ls/(clusters/\S+)", line)]
    assert {"clusters/set_up_node.sh", "clusters/weights.py", "clusters/mlflow_server.py"} == set(named)
    assert all((ROOT / name).is_file() for name in named)
    assert sum("D2LS_STORAGE=s3://BUCKET/d2ls" in line for line in commands(config)) == 1
    assert config["head_start_ray_commands"][0] == config["worker_start_ray_commands"][0] == "ray stop"
    assert "$RAY_HEAD_IP:6379" in config["worker_start_ray_commands"][1]


def test_set_up_stops_at_the_first_failure_and_checks_itself():
    text = SCRIPT.read_text()
    assert "\nset -euo pipefail\n" in text
    assert text.rstrip().endswith('"$python" "$project/clusters/check_node.py"')
    assert subprocess.run(["bash", "-n", str(SCRIPT)], check=False).returncode == 0


def test_set_up_asks_for_the_storage(tmp_path):
    done = subprocess.run(
        ["bash", str(SCRIPT)],
        env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        check=False,
    )
    assert done.returncode != 0
    assert b"D2LS_STORAGE" in done.stderr


RAYJOB = {
    "spec": {"entrypoint", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "backoffLimit", "rayClusterSpec"},
    "rayClusterSpec": {
        "rayVersion", "authOptions", "enableInTreeAutoscaling", "autoscalerOptions", "headGroupSpec", "workerGroupSpecs"
    },
    "autoscalerOptions": {"idleTimeoutSeconds", "upscalingMode"},
    "headGroupSpec": {"rayStartParams", "template"},
    "workerGroupSpecs": {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"},
    "pod": {"serviceAccountName", "tolerations", "containers", "volumes"},
    "container": {"name", "image", "workingDir", "env", "ports", "resources", "volumeMounts"},
}  # fmt: skip
"""Fields of ray.io/v1 (KubeRay 1.5.1) and of pods that the file uses: a misspelt one would be dropped silently."""


def test_rayjob_has_known_fields_and_agrees_with_itself():
    job = load(KUBERNETES)
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]
    cluster = spec["rayClusterSpec"]
    head, (group,) = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    assert set(spec) <= RAYJOB["spec"]
    assert set(cluster) <= RAYJOB["rayClusterSpec"]
    assert set(cluster["autoscalerOptions"]) <= RAYJOB["autoscalerOptions"]
    assert set(head) <= RAYJOB["headGroupSpec"]
    assert set(group) <= RAYJOB["workerGroupSpecs"]
    for part in (head, group):
        pod = part["template"]["spec"]
        assert set(pod) <= RAYJOB["pod"]
        assert all(set(container) <= RAYJOB["container"] for container in pod["containers"])
        assert all(isinstance(value, str) for value in part["rayStartParams"].values())
        mounted = {mount["name"] for box in pod["containers"] for mount in box.get("volumeMounts", [])}
        assert mounted == {volume["name"] for volume in pod.get("volumes", [])}


def test_rayjob_runs_a_recipe_that_exists_and_says_what_it_grows_to(monkeypatch):
    spec = load(KUBERNETES)["spec"]
    assert spec["entrypoint"].split()[:3] == ["python", "-m", "pipeline.sweep"]
    assert spec["entrypoint"].split()[3] in recipe_names()
    cluster = spec["rayClusterSpec"]
    head, (group,) = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    variables = {item["name"]: item["value"] for item in head["template"]["spec"]["containers"][0]["env"]}
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    monkeypatch.setenv(growth.GROWS_TO, variables[growth.GROWS_TO])
    assert growth.grows_to({}) == {
        "CPU": float(head["rayStartParams"]["num-cpus"]) + group["maxReplicas"] * float(limits["cpu"]),
        "GPU": group["maxReplicas"] * float(limits["nvidia.com/gpu"]),
    }


def dockerfile() -> list[list[str]]:
    text = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text())
    return [line.split() for line in text.splitlines() if line.strip() and not line.startswith("#")]


def test_dockerfile_has_both_variants_and_ends_in_one_stage():
    stages = [line[3] for line in dockerfile() if line[0] == "FROM"]
    assert stages == ["base", "cpu", "gpu", "final"]
    assert ["FROM", "${VARIANT}", "AS", "final"] in dockerfile()
    assert ["ARG", "VARIANT=cpu"] in dockerfile()


def test_dockerfile_copies_what_exists_and_the_ignore_file_lets_through():
    copied = {name for line in dockerfile() if line[0] == "COPY" for name in line[1:-1]}
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == allowed
    assert all((ROOT / name).exists() for name in copied)


def test_dockerfile_installs_by_constraints_and_does_not_run_as_root():
    installs = [" ".join(line) for line in dockerfile() if "install" in line and "pip" in line]
    assert all("--constraint" in line or "torch==${torch}+cpu" in line for line in installs)
    assert dockerfile()[-2] == ["USER", "ray"]
    assert {"torch", "torchvision"} <= set(CONSTRAINTS)
