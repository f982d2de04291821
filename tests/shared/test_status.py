"""Statuses with their details, there and back."""

import pytest
from google.rpc import code_pb2, error_details_pb2, status_pb2

from spyglass_common.status import StatusDetails, make_status, read_details


@pytest.mark.parametrize(
    "details",
    [
        StatusDetails(),
        StatusDetails(reason="invalid_image", field="chat.messages[0]"),
        StatusDetails(reason="too_many_requests", retry_after_s=2.5),
    ],
)
def test_details_come_back(details: StatusDetails) -> None:
    status = make_status(code_pb2.ABORTED, "why", details.reason, details.field, details.retry_after_s)
    status = status_pb2.Status.FromString(status.SerializeToString())
    assert (status.code, status.message) == (code_pb2.ABORTED, "why")
    assert read_details(status) == details


def test_a_reason_of_another_domain_is_not_ours() -> None:
    status = status_pb2.Status(code=code_pb2.INTERNAL)
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason="X", domain="googleapis.com"))
    status.details.add().Pack(error_details_pb2.Help())
    assert read_details(status) == StatusDetails()
