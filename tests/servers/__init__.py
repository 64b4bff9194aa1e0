"""Redis servers of every shape for the tests, all private, on 127.0.0.1 and gone afterwards."""

from tests.servers.binaries import ServerBinary, discover, select
from tests.servers.cluster import ClusterTopology
from tests.servers.polling import wait_until
from tests.servers.sentinel import SentinelTopology

__all__ = [
    "ClusterTopology",
    "SentinelTopology",
    "ServerBinary",
    "discover",
    "select",
    "wait_until",
]
