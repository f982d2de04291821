"""Converts usage between the protocol's messages and the ledger's values."""

from collections.abc import Sequence

from spyglass.v1 import inference_pb2 as pb
from spyglass_common.limits import MAX_USAGE_RECORDS
from spyglass_server.codec import events
from spyglass_server.codec.checks import in_calendar
from spyglass_server.errors import InvalidRequest
from spyglass_server.ledger import Filter, Group, Record, Sum

_GROUPS = {
    pb.USAGE_GROUP_TENANT: Group.TENANT,
    pb.USAGE_GROUP_KEY: Group.KEY,
    pb.USAGE_GROUP_MODEL: Group.MODEL,
    pb.USAGE_GROUP_DAY: Group.DAY,
}


def decode_filter(chosen: pb.UsageFilter) -> Filter:
    """Decodes which generations count."""
    return Filter(
        model=chosen.model,
        since_s=in_calendar("filter.since", chosen.since) if chosen.HasField("since") else None,
        until_s=in_calendar("filter.until", chosen.until) if chosen.HasField("until") else None,
    )


def decode_groups(groups: Sequence["pb.UsageGroup.ValueType"]) -> tuple[Group, ...]:
    """Decodes what usage is grouped by. Raises InvalidRequest for an unknown group."""
    if unknown := [group for group in groups if group not in _GROUPS]:
        raise InvalidRequest(f"usage cannot be grouped by {unknown[0]}", field="group_by")
    return tuple(dict.fromkeys(_GROUPS[group] for group in groups))


def decode_max_records(number: int) -> int:
    """Decodes how many records to list. Raises InvalidRequest for too many."""
    if number > MAX_USAGE_RECORDS:
        raise InvalidRequest(f"at most {MAX_USAGE_RECORDS} records can be listed", field="max_records")
    return number


def encode_sum(each: Sum) -> pb.UsageSum:
    """Encodes a sum, with the fields that it is grouped by."""
    return pb.UsageSum(
        tenant=each.tenant,
        key_id=each.key_id,
        model=each.model,
        day=each.day,
        generations=each.generations,
        prompt_tokens=each.prompt_tokens,
        cached_tokens=each.cached_tokens,
        completion_tokens=each.completion_tokens,
        images=each.images,
        estimated_cost=each.cost_usd,
    )


def encode_record(record: Record) -> pb.UsageRecord:
    """Encodes one generation's record."""
    return pb.UsageRecord(
        request_id=record.request_id,
        key_id=record.key_id,
        tenant=record.tenant or record.key_id,
        model=record.model,
        images=record.num_images,
        started=events.timestamp(record.started_s),
        finished=events.timestamp(record.finished_s),
        usage=pb.Usage(
            prompt_tokens=record.prompt_tokens,
            completion_tokens=record.completion_tokens,
            cached_tokens=record.cached_tokens,
            estimated_cost=record.cost_usd,
        ),
        outcome=record.outcome,
    )
