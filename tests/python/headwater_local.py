"""How a Python program reaches the daemon of a data directory: docs/local-rpc.md.

The stubs are generated from our own .proto by grpcio-tools, once, into a directory that is thrown away.
"""

import fcntl
import hmac
import json
import pathlib
import secrets
import sys

import grpc
from grpc_tools import protoc

DETAILS = "grpc-status-details-bin"


def generate(protos: pathlib.Path, into: pathlib.Path):
    """Compiles client.proto, and returns its two modules: messages and stubs."""
    proto = "headwater/client/v1/client.proto"
    args = ["protoc", f"-I{protos}", f"--python_out={into}", f"--grpc_python_out={into}", proto]
    if protoc.main(args) != 0:
        raise SystemExit("client.proto could not be compiled")
    sys.path.insert(0, str(into))
    from headwater.client.v1 import client_pb2, client_pb2_grpc

    return client_pb2, client_pb2_grpc


class WithToken(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor):
    """Brings the token of a loopback port along with every call."""

    def __init__(self, token: str):
        self.token = token

    def _with(self, details):
        metadata = list(details.metadata or []) + [("authorization", f"Bearer {self.token}")]
        return details._replace(metadata=metadata)

    def intercept_unary_unary(self, call, details, request):
        return call(self._with(details), request)

    def intercept_unary_stream(self, call, details, request):
        return call(self._with(details), request)


def place_of(data: pathlib.Path) -> dict:
    """What daemon.json says. It counts while the process that wrote it has the directory: one that was killed leaves it."""
    place = json.loads((data / "daemon.json").read_text())
    with open(data / "lock") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            if int(lock.read()) == place["pid"]:
                return place
    raise SystemExit("no daemon has this directory")


def check(pb, stubs, channel: grpc.Channel, token: str):
    """Whoever listens on the port has the token, too. Before this nothing is said there."""
    nonce = secrets.token_bytes(32)
    proof = stubs.DoorStub(channel).Prove(pb.ProveRequest(nonce=nonce)).proof
    wanted = hmac.digest(token.encode(), b"headwater/local/prove/v1" + nonce, "sha256")
    if not hmac.compare_digest(proof, wanted):
        raise SystemExit("somebody else answers there")


def connect(pb, stubs, data: pathlib.Path) -> grpc.Channel:
    """A channel to the daemon of a data directory, as its daemon.json says."""
    place = place_of(data)
    # The path of a socket is no name of a host.
    channel = grpc.insecure_channel(place["target"], options=[("grpc.default_authority", "localhost")])
    if "token_file" in place:
        token = pathlib.Path(place["token_file"]).read_text().strip()
        check(pb, stubs, channel, token)
        channel = grpc.intercept_channel(channel, WithToken(token))
    return channel


def failure(pb, error: grpc.RpcError):
    """The typed detail of a call that failed."""
    details = dict(error.trailing_metadata() or ()).get(DETAILS)
    return pb.ErrorDetail.FromString(details) if details else None
