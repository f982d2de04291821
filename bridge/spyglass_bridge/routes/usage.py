"""GET /v1/usage: what the caller's key has used."""

from datetime import UTC, datetime

from aiohttp import web

from spyglass.v1 import inference_pb2 as pb
from spyglass_bridge.errors import invalid, unsupported
from spyglass_bridge.openai.serialization import usage_report
from spyglass_bridge.services import CALLER_KEY, SERVICES
from spyglass_common.limits import MAX_USAGE_RECORDS
from spyglass_common.times import parse_time

_GROUPS = {"model": pb.USAGE_GROUP_MODEL, "day": pb.USAGE_GROUP_DAY}


async def get_usage(request: web.Request) -> web.Response:
    """Returns sums, by model and day if requested, and the latest generations."""
    usage = await request.app[SERVICES].backend.get_usage(_question(request))
    return web.json_response(usage_report(usage))


def _question(request: web.Request) -> pb.GetUsageRequest:
    question = pb.GetUsageRequest(caller=pb.Caller(bearer_key=request[CALLER_KEY]))
    for name, value in request.query.items():
        match name:
            case "since" | "until":
                getattr(question.filter, name).FromDatetime(_moment(name, value))
            case "model":
                question.filter.model = value
            case "group_by":
                question.group_by.extend(_group(word) for word in value.split(","))
            case "records":
                question.max_records = _number(value)
            case _:
                raise unsupported(name)
    return question


def _moment(name: str, value: str) -> datetime:
    try:
        return parse_time(value).astimezone(UTC)
    except (ValueError, OverflowError):
        raise invalid(f"{name} must be a day or a time, such as 2026-11-29 or 2026-11-29T12:00:00Z", name) from None


def _group(word: str) -> "pb.UsageGroup.ValueType":
    if word not in _GROUPS:
        raise invalid("group_by must be model, day or both, with a comma", "group_by")
    return _GROUPS[word]


def _number(value: str) -> int:
    if not (value.isascii() and value.isdecimal() and len(value) < 5 and int(value) <= MAX_USAGE_RECORDS):
        raise invalid(f"records must be a number from 0 to {MAX_USAGE_RECORDS}", "records")
    return int(value)
