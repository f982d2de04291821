"""What the ledger records about a generation."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One generation.

    Times are seconds since 1970: when the server accepted it, when its computation began, when its first token came and
    when it ended, which is None while it runs. Prices are in US dollars per million tokens. `number` grows with each
    generation of a server. `outcome` is OK or the name of a status code, LOST if the server has crashed, and empty
    while it runs. `tenant` is empty in records of an earlier version, where each key was its own tenant.
    """

    request_id: str
    tenant: str = ""
    key_id: str
    model: str
    queued_s: float
    started_s: float
    prompt_tokens: int
    cached_tokens: int
    num_images: int
    price_input: float
    price_output: float
    price_cached_input: float
    number: int = 0
    server_id: str = ""
    first_token_s: float | None = None
    finished_s: float | None = None
    completion_tokens: int = 0
    cost_usd: float = 0.0
    outcome: str = ""
