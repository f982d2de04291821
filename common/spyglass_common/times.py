"""Times as people write them."""

from datetime import UTC, datetime


def parse_time(text: str) -> datetime:
    """Parses a day or a time in ISO 8601, in UTC unless it says otherwise. Raises ValueError."""
    moment = datetime.fromisoformat(text)
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
