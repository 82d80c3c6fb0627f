"""Faust's assignor, for a number of partitions that does not change while the workers run."""

from __future__ import annotations

from typing import Any, NamedTuple

from aiokafka.cluster import ClusterMetadata
from faust.assignor.partition_assignor import PartitionAssignor

from stream.kafka.agent import AgentApp


class FirstPartitions(NamedTuple):
    """The cluster's topics without the partitions from `partitions` on."""

    cluster: ClusterMetadata
    partitions: int

    def partitions_for_topic(self, topic: str) -> set[int]:
        found: set[int] | None = self.cluster.partitions_for_topic(topic)
        return {number for number in found or () if number < self.partitions}


class FixedAssignor(PartitionAssignor):
    """Assigns the partitions below SHOPWINDOW_PARTITIONS.

    Faust assigns topics together only if they have the same number of partitions. When one topic has grown, Faust might
    give a worker the events of a partition whose profiles another worker has, and both would write them.
    """

    app: AgentApp

    def _perform_assignment(self, cluster: Any, member_metadata: Any) -> Any:
        return super()._perform_assignment(FirstPartitions(cluster, self.app.settings.partitions), member_metadata)
