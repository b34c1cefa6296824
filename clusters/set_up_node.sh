#!/bin/bash
# Sets up a node of the cluster: the Python environment with the tested versions, and the variables that Ray, MLflow
# and the commands read. `ray up` runs it on every node; a second run changes nothing and takes seconds. It stops at the
# first command that fails, and checks the result at the end.
#
#     D2LS_STORAGE=s3://bucket/d2ls bash ~/d2ls/clusters/set_up_node.sh
#
# Reads D2LS_STORAGE (required), RAY_HEAD_IP (set by Ray on workers) and D2LS_VENV (folder of the environment). Passes
# on AWS_REGION and AWS_ENDPOINT_URL (for stores other than AWS) if they are set. Keys are not passed, because `ray up`
# prints the lines that it runs: they come from ~/.aws/credentials or from the instance profile.
set -euo pipefail
trap 'echo "set_up_node.sh: line $LINENO failed on $(hostname)" >&2' ERR

project=$(cd "$(dirname "$0")/.." && pwd)
: "${D2LS_STORAGE:?set it to the storage of shards, runs and models: s3://bucket/prefix, or a folder that all nodes mount}"
venv=${D2LS_VENV:-$HOME/.d2ls-venv}
python=$venv/bin/python

# The environment: made once, and updated when the pinned versions have changed.
wanted=$(cat "$project/pyproject.toml" "$project/constraints.txt" | sha256sum)
if [[ ! -x $python || $(cat "$venv/d2ls-node" 2>/dev/null) != "$wanted" ]]; then
    [[ -x $python ]] || python3 -m venv "$venv"
    "$python" -m pip install --quiet --disable-pip-version-check "uv==0.9.*"
    "$python" -m uv pip install --quiet --python "$python" --compile-bytecode \
        --constraint "$project/constraints.txt" --editable "$project[search]" boto3
    echo "$wanted" >"$venv/d2ls-node"
fi

# The variables. Raylets inherit them from the shell that runs `ray start`, and so do drivers and jobs on the head.
own_address=$("$python" -c 'import socket; s = socket.socket(type=socket.SOCK_DGRAM); s.connect(("8.8.8.8", 80))
print(s.getsockname()[0])')
head=${RAY_HEAD_IP:-$own_address}
# Gloo resolves the host name, which is 127.0.1.1 on many machines, so name the interface that the others reach.
interface=$("$python" -c 'import psutil, sys
print(next(n for n, a in psutil.net_if_addrs().items() if any(x.address == sys.argv[1] for x in a)))' "$own_address")
umask 077
{
    echo "# written by set_up_node.sh"
    echo "export PATH=$venv/bin:\$PATH"
    echo "export D2LS_STORAGE=$D2LS_STORAGE"
    echo "export MLFLOW_TRACKING_URI=http://$head:5000"
    echo "export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 MLFLOW_DISABLE_TELEMETRY=true"
    echo "export GLOO_SOCKET_IFNAME=$interface NCCL_SOCKET_IFNAME=$interface"
    # A worker group waits until its nodes have started, which takes minutes.
    echo "export RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S=1200"
    if [[ -z ${RAY_HEAD_IP:-} ]]; then
        echo "export RAY_ADDRESS=$own_address:6379"
    else
        # Workers read pretrained weights from the storage, where the head put them, and never from the hub.
        echo "export HF_HUB_OFFLINE=1"
    fi
    for name in AWS_REGION AWS_ENDPOINT_URL; do
        [[ -z ${!name:-} ]] || printf 'export %s=%q\n' "$name" "${!name}"
    done
    [[ -z ${AWS_REGION:-} ]] || echo "export AWS_DEFAULT_REGION=$AWS_REGION" # Arrow's S3 client knows it by this name
    # The cache of the loader goes to a fast local disk if the machine has one.
    if [[ -w /opt/dlami/nvme ]]; then
        mkdir -p /opt/dlami/nvme/tmp
        echo "export TMPDIR=/opt/dlami/nvme/tmp"
    fi
} >"$HOME/.d2ls-env"
for secret in "$HOME/.ray/auth_token" "$HOME/.aws/credentials"; do
    [[ ! -f $secret ]] || chmod 600 "$secret"
done
for file in "$HOME/.profile" "$HOME/.bashrc"; do
    touch "$file"
    # As the first line: a .bashrc often returns early in a shell that is not interactive.
    grep -q d2ls-env "$file" || sed -i '1i . "$HOME/.d2ls-env"' "$file"
    grep -q d2ls-env "$file" || echo '. "$HOME/.d2ls-env"' >>"$file"
done

# The check: pinned versions, and whether PyTorch can use the GPU if there is one.
. "$HOME/.d2ls-env"
cd "$project"
"$python" "$project/clusters/check_node.py"
