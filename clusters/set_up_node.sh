#!/bin/bash
# Makes a machine a node of the cluster: the Python environment with the tested versions, and the variables that Ray,
# MLflow and the stages read. `ray up` runs it on every node; a second run changes nothing and takes seconds. It stops
# at the first command that fails, and at the end it checks what it made.
#
#     D2LS_STORAGE=s3://bucket/d2ls bash ~/d2ls/clusters/set_up_node.sh
#
# Reads: D2LS_STORAGE (needed), RAY_HEAD_IP (set by Ray on workers), D2LS_VENV (where the environment goes), and passes
# on what is set of AWS_REGION and AWS_ENDPOINT_URL (stores other than AWS's own). Keys are not given here, as `ray up` prints
# the lines it runs: they are read from ~/.aws/credentials, or come from the instance profile.
set -euo pipefail
trap 'echo "set_up_node.sh: line $LINENO failed on $(hostname)" >&2' ERR

project=$(cd "$(dirname "$0")/.." && pwd)
: "${D2LS_STORAGE:?says where shards, runs and models go: s3://bucket/prefix, or a folder that all nodes mount}"
venv=${D2LS_VENV:-$HOME/.d2ls-venv}
python=$venv/bin/python

# The environment, once, and again where the pinned versions have changed.
wanted=$(cat "$project/pyproject.toml" "$project/constraints.txt" | sha256sum)
if [[ ! -x $python || $(cat "$venv/d2ls-node" 2>/dev/null) != "$wanted" ]]; then
    [[ -x $python ]] || python3 -m venv "$venv"
    "$python" -m pip install --quiet --disable-pip-version-check "uv==0.9.*"
    "$python" -m uv pip install --quiet --python "$python" --compile-bytecode \
        --constraint "$project/constraints.txt" --editable "$project[search]" boto3
    echo "$wanted" >"$venv/d2ls-node"
fi

# The variables. Raylets inherit them from the shell that runs `ray start`, drivers and jobs on the head likewise.
own_address=$("$python" -c 'import socket; s = socket.socket(type=socket.SOCK_DGRAM); s.connect(("8.8.8.8", 80))
print(s.getsockname()[0])')
head=${RAY_HEAD_IP:-$own_address}
# Gloo looks up the host name, which many machines call 127.0.1.1: say which interface the others reach.
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
    # A node may have to be started first, which takes minutes; a worker group waits as long.
    echo "export RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S=1200"
    if [[ -z ${RAY_HEAD_IP:-} ]]; then
        echo "export RAY_ADDRESS=$own_address:6379"
    else
        # Workers read pretrained weights that the head put into the storage, and ask nobody outside.
        echo "export HF_HUB_OFFLINE=1"
    fi
    for name in AWS_REGION AWS_ENDPOINT_URL; do
        [[ -z ${!name:-} ]] || printf 'export %s=%q\n' "$name" "${!name}"
    done
    [[ -z ${AWS_REGION:-} ]] || echo "export AWS_DEFAULT_REGION=$AWS_REGION" # Arrow's S3 client knows it by this name
    # A fast local disk, where the machine has one, holds the loader's cache.
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
    # In front: a .bashrc often ends early for shells that nobody types in.
    grep -q d2ls-env "$file" || sed -i '1i . "$HOME/.d2ls-env"' "$file"
    grep -q d2ls-env "$file" || echo '. "$HOME/.d2ls-env"' >>"$file"
done

# The check: versions as pinned, and a GPU that PyTorch can use where there is one.
. "$HOME/.d2ls-env"
cd "$project"
"$python" "$project/clusters/check_node.py"
