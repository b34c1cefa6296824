"""Ray: joining a cluster or starting a local one, what it has, and whether it is enough for a recipe."""

from pipeline.cluster.connection import connect
from pipeline.cluster.resources import Cluster, address_of, check_resources, check_shared, this_machine

__all__ = ["Cluster", "address_of", "check_resources", "check_shared", "connect", "this_machine"]
