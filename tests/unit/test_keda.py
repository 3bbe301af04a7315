"""ScaledObjects: Kubernetes's schemas have none, so their fields are checked against those that KEDA 2.21 documents."""

from typing import Any

import pytest

from brewctl.config import SHORT_NAMES, TOPIC
from brewctl.delivery import registry
from brewctl.delivery.broker.partitions import PARTITIONS
from brewctl.exporter.families import FAMILIES
from tests.deploying import unknown
from tests.unit.test_kubernetes import DEPLOYMENTS, SCALERS, component, label

# keda.sh/docs/2.21: reference/scaledobject-spec, scalers/apache-kafka, scalers/prometheus.
SCALED = {
    "scaleTargetRef",
    "pollingInterval",
    "cooldownPeriod",
    "minReplicaCount",
    "maxReplicaCount",
    "fallback",
    "advanced",
    "triggers",
}
KAFKA_TRIGGER = {
    "bootstrapServers",
    "bootstrapServersFromEnv",
    "consumerGroup",
    "topic",
    "lagThreshold",
    "activationLagThreshold",
    "offsetResetPolicy",
    "allowIdleConsumers",
    "scaleToZeroOnInvalidOffset",
    "excludePersistentLag",
    "limitToPartitionsWithLag",
    "ensureEvenDistributionOfPartitions",
    "version",
    "partitionLimitation",
    "sasl",
    "tls",
    "unsafeSsl",
}
PROMETHEUS_TRIGGER = {
    "serverAddress",
    "query",
    "queryParameters",
    "namespace",
    "threshold",
    "activationThreshold",
    "ignoreNullValues",
    "unsafeSsl",
}


@pytest.mark.parametrize("each", SCALERS, ids=label)
def test_a_scaled_object_is_as_keda_documents_it(each: Any) -> None:
    assert (each["apiVersion"], each["kind"]) == ("keda.sh/v1alpha1", "ScaledObject")
    spec = each["spec"]
    assert spec.keys() <= SCALED
    assert component(DEPLOYMENTS[spec["scaleTargetRef"]["name"]]) == component(each)
    assert spec["minReplicaCount"] == 1
    (trigger,) = spec["triggers"]
    assert trigger.keys() == {"type", "metadata"}
    assert trigger["metadata"].keys() <= {"kafka": KAFKA_TRIGGER, "prometheus": PROMETHEUS_TRIGGER}[trigger["type"]]
    assert all(isinstance(value, str) for value in trigger["metadata"].values()), "KEDA takes text alone"


def test_consumers_scale_by_their_groups_lag_up_to_the_partitions() -> None:
    consumers = {component(each): each["spec"] for each in SCALERS if each["spec"]["triggers"][0]["type"] == "kafka"}
    assert consumers.keys() == SHORT_NAMES.keys()
    for name, spec in consumers.items():
        told = spec["triggers"][0]["metadata"]
        assert told["consumerGroup"] == registry.find(SHORT_NAMES[name]).group
        assert told["topic"] == TOPIC
        assert told["offsetResetPolicy"] == "earliest"
        assert spec["maxReplicaCount"] == PARTITIONS
        assert not unknown([told["bootstrapServersFromEnv"]])


def test_publishers_scale_by_a_metric_that_is_exported() -> None:
    (spec,) = [each["spec"] for each in SCALERS if component(each) == "publisher"]
    query = spec["triggers"][0]["metadata"]["query"]
    assert query == "max(brew_outbox_oldest_seconds)"
    assert "brew_outbox_oldest_seconds" in {family.name for family in FAMILIES}
