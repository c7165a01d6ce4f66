"""The wire format of the agent's protocol: newline-delimited JSON, decoded into typed records at the edge.

The promise is written in `rerail_api.contract`. Unknown fields are ignored: a newer agent may say more.
"""

from typing import Annotated, Any

import msgspec

from rerail_api.contract import MAX_FRAME_BYTES, AgentState

NotNegative = Annotated[int, msgspec.Meta(ge=0)]
Age = Annotated[float, msgspec.Meta(ge=0)]


class BadFrame(ValueError):
    """The peer does not speak the protocol; the message says what is wrong with the frame."""


class ReleaseFrame(msgspec.Struct, frozen=True):
    round: NotNegative
    node_rank: NotNegative
    num_nodes: NotNegative
    nproc: NotNegative
    master_addr: str
    master_port: NotNegative
    min_step: int = 0
    checkpoint_seconds: NotNegative = 0


class ExitFrame(msgspec.Struct, frozen=True):
    exit_code: int | None = None
    signal: int | None = None
    rank: int | None = None
    local_rank: int | None = None
    ordered: bool = False
    exception: str | None = None
    last_line: str | None = None
    lines: list[str] = []
    age: Age = 0.0
    contract: bool = False
    codes: dict[str, int] = {}
    same_on_all: bool = False


class PlaceFrame(msgspec.Struct, frozen=True):
    ranks: list[NotNegative]
    state: str = ""
    where: str = ""
    waits: str = ""
    told: bool = False


class StacksFrame(msgspec.Struct, frozen=True):
    step: int | None = None
    places: list[PlaceFrame] = []


class ReportFrame(msgspec.Struct, frozen=True):
    state: AgentState
    round: NotNegative = 0
    term: NotNegative = 0
    release: ReleaseFrame | None = None
    address: str | None = None
    port: NotNegative | None = None
    exit: ExitFrame | None = None
    ranks_alive: NotNegative = 0
    progress: dict[str, Any] | None = None
    progress_age: Age | None = None
    moved_age: Age | None = None
    step_seconds_p99: Age | None = None
    stacks: StacksFrame | None = None
    probe_port: int | None = None
    busy: dict[str, tuple[int, float]] = {}
    checkpoint_seconds: NotNegative | None = None


class Hello(msgspec.Struct, frozen=True, tag_field="kind", tag="hello"):
    v: int
    token: str
    job: str
    job_uid: str
    pod: str
    pod_uid: str
    report: ReportFrame
    can: list[str] = []


class Report(msgspec.Struct, frozen=True, tag_field="kind", tag="report"):
    report: ReportFrame


class Probed(msgspec.Struct, frozen=True, tag_field="kind", tag="probed"):
    id: int
    outcome: str


Message = Hello | Report | Probed
_decoder: msgspec.json.Decoder[Message] = msgspec.json.Decoder(Message)
_encoder = msgspec.json.Encoder()


def decode(frame: bytes) -> Message:
    """Raises BadFrame with the path of what does not fit."""
    try:
        return _decoder.decode(frame)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadFrame(f"unreadable message: {error}") from error


def encode(message: dict[str, Any]) -> bytes:
    """One frame, newline included. Raises BadFrame when it is longer than the peer accepts."""
    frame = _encoder.encode(message) + b"\n"
    if len(frame) > MAX_FRAME_BYTES:
        raise BadFrame(f"a message of {len(frame)} bytes; at most {MAX_FRAME_BYTES} are allowed")
    return frame


class FrameBuffer:
    """Collects bytes, gives whole frames; never holds more than one frame's worth of an unfinished line."""

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Frames completed by `data`, empty lines left out. Raises BadFrame when a line grows too long."""
        *frames, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAX_FRAME_BYTES or any(len(frame) > MAX_FRAME_BYTES for frame in frames):
            raise BadFrame(f"a message of more than {MAX_FRAME_BYTES} bytes")
        return [frame for frame in frames if frame.strip()]
