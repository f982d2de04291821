"""google.rpc.Status with the details that Spyglass uses: ErrorInfo, BadRequest, RetryInfo and its own RateLimits."""

from dataclasses import dataclass

import grpc
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2, status_pb2

from spyglass.v1 import inference_pb2 as pb
from spyglass_common.rate_limits import RateLimits

ERROR_DOMAIN = "spyglass"
"""ErrorInfo.domain of every error that our servers and bridges produce."""
STATUS_METADATA_KEY = "grpc-status-details-bin"
"""Key of the trailing metadata in which a failed call carries its Status."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusDetails:
    """The details of a Status; None where absent.

    `reason` is a word for programs; only errors of our own domain have one, and their message is meant for people.
    `field` is the path of the first field at fault.
    """

    reason: str | None = None
    field: str | None = None
    retry_after_s: float | None = None
    rate_limits: RateLimits | None = None


def make_status(
    code: int,
    message: str,
    reason: str | None = None,
    field: str | None = None,
    retry_after_s: float | None = None,
    *,
    rate_limits: RateLimits | None = None,
) -> status_pb2.Status:
    """Makes a Status with a canonical code and a detail for each argument that is not None."""
    status = status_pb2.Status(code=code, message=message)
    if reason is not None:
        status.details.add().Pack(error_details_pb2.ErrorInfo(reason=reason, domain=ERROR_DOMAIN))
    if field is not None:
        violation = error_details_pb2.BadRequest.FieldViolation(field=field, description=message)
        status.details.add().Pack(error_details_pb2.BadRequest(field_violations=[violation]))
    if retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(round(retry_after_s * 1e9))
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    if rate_limits is not None:
        status.details.add().Pack(rate_limits.to_proto())
    return status


def read_details(status: status_pb2.Status) -> StatusDetails:
    """Unpacks the details of a Status; those of unknown types are ignored."""
    info = error_details_pb2.ErrorInfo()
    request = error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    limits = pb.RateLimits()
    retry_after_s = None
    for detail in status.details:
        if detail.Unpack(retry):
            retry_after_s = retry.retry_delay.ToTimedelta().total_seconds()
        elif not detail.Unpack(info) and not detail.Unpack(limits):
            detail.Unpack(request)
    return StatusDetails(
        reason=info.reason or None if info.domain == ERROR_DOMAIN else None,
        field=request.field_violations[0].field or None if request.field_violations else None,
        retry_after_s=retry_after_s,
        rate_limits=RateLimits.from_proto(limits),
    )


def status_of(error: grpc.aio.AioRpcError | grpc.Call) -> status_pb2.Status | None:
    """Returns the Status that the server attached to a failed call; None if gRPC itself reports the failure."""
    for key, value in error.trailing_metadata() or ():
        if key == STATUS_METADATA_KEY and isinstance(value, bytes):
            return status_pb2.Status.FromString(value)
    return None
