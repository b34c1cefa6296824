"""Ray: joins a cluster or starts a local one, and checks that its resources are enough for a recipe."""

from pipeline.cluster.connection import connect
from pipeline.cluster.resources import Cluster, address_of, check_resources, check_shared, this_machine

__all__ = ["Cluster", "address_of", "check_resources", "check_shared", "connect", "this_machine"]
