"""Parts of Ray that this project needs and that Ray does not document.

tests/unit/pipeline/cluster/test_ray_internals.py shows which of them a new Ray version broke.
"""

import logging
import os
from pathlib import Path
from typing import Any

REACH_SECONDS = 2.0
LONGEST_ROOT = 16
"""Longest path of Ray's folder, in characters. Ray makes sockets below it: names of up to 90, paths of at most 107."""

SECRETS = ("AWS_", "AZURE_", "GOOGLE_", "HF_", "MLFLOW_")
"""Prefixes of variables that may hold a key or a password."""

HEAD_CALL, CLIENT_CALL = "/ray.rpc.NodeInfoGcsService/GetClusterId", "/ray.rpc.RayletDriver/ClusterInfo"
"""Calls without an effect, on a head and on its client port. A cluster with tokens refuses them without a token."""


def keep_secrets() -> None:
    """Stops Tune from copying AWS keys into the `runtime_env` of trials, which Ray logs in clear for all to read.

    Workers get them from their node: with a local Ray from this process, else from the environment of the node.
    """
    from ray.tune.execution import class_cache

    class_cache.ENV_VARS_TO_PROPAGATE -= {
        name for name in class_cache.ENV_VARS_TO_PROPAGATE if name.startswith(SECRETS)
    }


def hide_token_remark() -> None:
    """Silences Ray's message on tokens, which a local Ray does not need."""
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)


def start_options(address: str, scratch: Path) -> dict[str, Any]:
    """Returns arguments that make `ray.init` listen on one address only and keep its files in one folder."""
    return {"_node_ip_address": address, "_temp_dir": str(scratch)}


def wants_token(target: str, *, client: bool) -> bool:
    """Returns whether a cluster refuses the token of this process, or refuses it because it has none.

    Args:
        target: `host:port` of the head, or of its client port.
        client: whether it is the client port (`ray://`).
    """
    import grpc

    token = os.environ.get("RAY_AUTH_TOKEN")
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    if not token and file.is_file():
        token = file.read_text(encoding="utf-8").strip()
    header = (("authorization", f"Bearer {token}"),) if token else None
    with grpc.insecure_channel(target) as channel:
        try:
            channel.unary_unary(CLIENT_CALL if client else HEAD_CALL)(
                b"", timeout=REACH_SECONDS, metadata=header
            )
        except grpc.RpcError as error:  # any other answer is left to Ray
            return bool(error.code() is grpc.StatusCode.UNAUTHENTICATED)
    return False
