"""Redis servers of every shape for the tests, all private, on 127.0.0.1 and gone afterwards."""

from tests.support.servers.binaries import ServerBinary, discover, select
from tests.support.servers.cluster import ClusterTopology
from tests.support.servers.polling import wait_until
from tests.support.servers.sentinel import SentinelTopology

__all__ = [
    "ClusterTopology",
    "SentinelTopology",
    "ServerBinary",
    "discover",
    "select",
    "wait_until",
]
