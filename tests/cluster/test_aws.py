"""ray_cluster.yaml against an AWS simulated by moto: the account's stack, then `ray up` up to the head instance."""

import base64
import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import boto3
import pytest

from tests.cluster.machines import BINARIES, ROOT, why_not

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]
REGION = "us-west-2"


@pytest.fixture(scope="module")
def aws(tmp_path_factory) -> Iterator[dict[str, str]]:
    """Runs moto; yields the variables by which clients find it, with new folders: Ray caches its knowledge of an
    account in the temporary folder, and would use that of an earlier test."""
    home = tmp_path_factory.mktemp("home")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        "PATH": f"{BINARIES}:/usr/sbin:/usr/bin:/bin", "HOME": str(home), "TMPDIR": str(home), "LANG": "C.UTF-8",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_REGION": REGION, "AWS_DEFAULT_REGION": REGION,
        "AWS_ACCESS_KEY_ID": "tester", "AWS_SECRET_ACCESS_KEY": "secret",
        "MOTO_IAM_LOAD_MANAGED_POLICIES": "true", "RAY_USAGE_STATS_ENABLED": "0",
    }  # fmt: skip
    log = (home / "moto.log").open("wb")
    server = subprocess.Popen(
        [str(BINARIES / "moto_server"), "-H", "127.0.0.1", "-p", str(port)],
        env=environment,
        stdout=log,
        stderr=log,
    )
    try:
        for _ in range(120):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.5)
        yield environment
    finally:
        server.kill()
        server.wait()


def client(aws: dict[str, str], name: str) -> Any:
    return boto3.client(
        name, endpoint_url=aws["AWS_ENDPOINT_URL"], region_name=REGION, aws_access_key_id="tester",
        aws_secret_access_key="secret",
    )  # fmt: skip


@contextlib.contextmanager
def ray_up(aws: dict[str, str], tmp_path: Any) -> Iterator[subprocess.Popen[str]]:
    """Runs `ray up` in a new process namespace; it never gets past waiting for SSH."""
    text = (ROOT / "ray_cluster.yaml").read_text().replace("BUCKET/d2ls", "d2ls-test/d2ls")
    file = tmp_path / "ray_cluster.yaml"
    file.write_text(text)
    said = (tmp_path / "ray_up.log").open("w")
    line = ["setpriv", "--pdeathsig", "KILL", "unshare", "-p", "-f", "--mount-proc", "--kill-child=SIGKILL"]
    process = subprocess.Popen(
        [*line, "ray", "up", "-y", str(file)], cwd=ROOT, env=aws, text=True, stdin=subprocess.DEVNULL, stdout=said,
        stderr=said, start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def instances(aws: dict[str, str]) -> list[dict[str, Any]]:
    result = client(aws, "ec2").describe_instances()["Reservations"]
    return [instance for reservation in result for instance in reservation["Instances"]]


@pytest.mark.skipif(bool(why_not()), reason=why_not() or "-")
def test_without_the_accounts_stack_nothing_is_made(aws, tmp_path):
    subprocess.run(["ray", "get-auth-token", "--generate"], env=aws, check=True, capture_output=True)
    with ray_up(aws, tmp_path) as process:
        assert process.wait(timeout=180) != 0
    assert "d2ls-node" in (tmp_path / "ray_up.log").read_text()
    assert instances(aws) == []
    groups = client(aws, "ec2").describe_security_groups()["SecurityGroups"]
    assert {group["GroupName"] for group in groups} == {"default"}


@pytest.mark.skipif(bool(why_not()), reason=why_not() or "-")
def test_ray_up_makes_the_head_as_intended(aws, tmp_path):
    stacks = client(aws, "cloudformation")
    stacks.create_stack(
        StackName="d2ls", TemplateBody=(ROOT / "clusters" / "aws_account.yaml").read_text(),
        Parameters=[{"ParameterKey": "Bucket", "ParameterValue": "d2ls-test"}], Capabilities=["CAPABILITY_NAMED_IAM"],
    )  # fmt: skip
    assert stacks.describe_stacks(StackName="d2ls")["Stacks"][0]["StackStatus"] == "CREATE_COMPLETE"
    with ray_up(aws, tmp_path) as process:
        deadline = time.monotonic() + 300
        while not instances(aws) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(2)
        made = instances(aws)
        print((tmp_path / "ray_up.log").read_text())
    assert len(made) == 1, (tmp_path / "ray_up.log").read_text()
    (head,) = made
    check_machine(aws, head)
    check_network(aws, head)
    check_roles(aws, head)


def check_machine(aws: dict[str, str], head: dict[str, Any]) -> None:
    tags = {tag["Key"]: tag["Value"] for tag in head["Tags"]}
    assert (tags["ray-node-type"], tags["ray-cluster-name"], tags["ray-user-node-type"]) == (
        "head",
        "d2ls",
        "head",
    )
    assert head["InstanceType"] == "m7i.2xlarge"
    data = client(aws, "ec2").describe_instance_attribute(InstanceId=head["InstanceId"], Attribute="userData")
    text = base64.b64decode(data["UserData"]["Value"]).decode()
    assert text.startswith("#cloud-config\n")
    assert "python3-venv" in text


def check_network(aws: dict[str, str], head: dict[str, Any]) -> None:
    ec2 = client(aws, "ec2")
    (group,) = head["SecurityGroups"]
    assert group["GroupName"] == "d2ls-cluster"
    (result,) = ec2.describe_security_groups(GroupIds=[group["GroupId"]])["SecurityGroups"]
    print("inbound rules:", result["IpPermissions"])
    assert result["IpPermissions"]
    for rule in result["IpPermissions"]:
        assert rule["IpRanges"] == []
        assert rule["Ipv6Ranges"] == []
        assert [pair["GroupId"] for pair in rule["UserIdGroupPairs"]] == [group["GroupId"]]
    names = {item["GroupName"] for item in ec2.describe_security_groups()["SecurityGroups"]}
    assert names == {"default", "d2ls-cluster"}  # Ray made no other group, with SSH open to everyone


def check_roles(aws: dict[str, str], head: dict[str, Any]) -> None:
    iam = client(aws, "iam")
    assert head["IamInstanceProfile"]["Arn"].endswith("/d2ls-node")
    (role,) = iam.get_instance_profile(InstanceProfileName="d2ls-node")["InstanceProfile"]["Roles"]
    # moto's CloudFormation leaves out what a role attaches (AmazonSSMManagedInstanceCore), not what it holds.
    assert sorted(iam.list_role_policies(RoleName=role["RoleName"])["PolicyNames"]) == [
        "autoscaling",
        "storage",
    ]
    assert [item["RoleName"] for item in iam.list_roles()["Roles"]] == ["d2ls-node"]  # none of Ray's own
