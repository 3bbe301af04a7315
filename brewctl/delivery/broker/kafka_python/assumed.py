"""The private names of kafka-python-ng that this package uses or replaces.

Importing this module raises BrewError if the installed release lacks one.
"""

from brewctl.installed import require

LIBRARY = "kafka-python-ng"
_MEASURING = (
    *("client_async", "cluster", "conn", "consumer.fetcher", "consumer.group", "coordinator.base"),
    *("coordinator.consumer", "coordinator.heartbeat", "metrics.kafka_metric", "metrics.stats.sensor"),
    *("producer.buffer", "producer.kafka", "producer.record_accumulator", "producer.sender"),
)
NAMES = {
    **{f"kafka.{module}": ("time",) for module in _MEASURING},
    "kafka.client_async": ("time", "BrokerConnection", "MetadataRequest"),
    "kafka.conn": ("time", "SaslHandShakeRequest"),
    "kafka.consumer.fetcher": ("time", "READ_COMMITTED"),
    "kafka.consumer.group": ("time", "Fetcher"),
    "kafka.errors": ("kafka_errors", "for_code"),
    "kafka.protocol.metadata": ("MetadataRequest_v0", "MetadataRequest_v4"),
    "kafka.sasl": ("MECHANISMS",),
    "kafka.admin.client:KafkaAdminClient": (
        *("_client", "_find_coordinator_ids", "_refresh_controller_id", "_send_request_to_node", "_wait_for_futures"),
    ),
    "kafka.client_async:KafkaClient": ("_closed", "_lock", "_poll", "_register_send_sockets", "_sending"),
    "kafka.conn:BrokerConnection": (
        *("_sasl_auth_future", "_send", "_sock", "_try_authenticate", "_try_handshake", "_wrap_ssl"),
        "send_pending_requests_v2",
    ),
    "kafka.consumer.fetcher:Fetcher": (
        *("_completed_fetches", "_handle_fetch_response", "_isolation_level", "_next_partition_records"),
        *("_parse_fetched_data", "_reset_offset", "_subscriptions", "_unpack_message_set"),
    ),
    "kafka.consumer.group:KafkaConsumer": (
        *("_client", "_coordinator", "_fetcher", "_poll_once", "_subscription", "_update_fetch_positions"),
    ),
    "kafka.coordinator.base:HeartbeatThread": (
        *("_handle_heartbeat_failure", "_handle_heartbeat_success", "_run_once"),
    ),
    "kafka.coordinator.consumer:ConsumerCoordinator": (
        *("_client", "_heartbeat_thread", "_lock", "_send_heartbeat_request", "_start_heartbeat_thread"),
    ),
    "kafka.metrics.stats.sensor:Sensor": ("record",),
    "kafka.producer.kafka:KafkaProducer": (
        *("_accumulator", "_ensure_valid_record_size", "_estimate_size_in_bytes", "_metadata", "_partition", "_sender"),
    ),
    "kafka.producer.record_accumulator:ProducerBatch": ("try_append",),
    "kafka.producer.record_accumulator:RecordAccumulator": ("_flushes_in_progress",),
    "kafka.record.default_records:DefaultRecordBatch": ("_buffer", "_header_data", "_pos", "_read_msg"),
    "kafka.record.default_records:DefaultRecordBatchBuilder": (
        *("_batch_size", "_buffer", "_first_timestamp", "_last_offset", "_max_timestamp", "_num_records", "append"),
    ),
    "kafka.record.util": ("decode_varint", "encode_varint", "size_of_varint"),
}
require(LIBRARY, NAMES)
