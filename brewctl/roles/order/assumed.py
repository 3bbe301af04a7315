"""The names of grpcio's inside that `call` uses (docs/decisions/0011). Importing this module asks for them."""

from brewctl.installed import require

LIBRARY = "grpcio"
NAMES = {
    "grpc._server": (
        *("_RECEIVE_MESSAGE_TOKEN", "_SEND_MESSAGE_TOKEN", "_is_rpc_state_active", "_possibly_finish_call", "_status"),
    ),
    "grpc._server:_RPCState": (
        *("callbacks", "code", "condition", "details", "due", "initial_metadata_allowed", "statused"),
        "trailing_metadata",
    ),
    "grpc._cython.cygrpc": ("ReceiveMessageOperation", "SendInitialMetadataOperation", "SendMessageOperation"),
}
require(LIBRARY, NAMES)
