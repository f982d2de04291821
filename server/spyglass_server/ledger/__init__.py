"""The usage ledger: what each key has used."""

from spyglass_server.ledger.data_dir import lock_data_dir, read_server_id
from spyglass_server.ledger.ledger import Ledger
from spyglass_server.ledger.record import Record, Total

__all__ = ["Ledger", "Record", "Total", "lock_data_dir", "read_server_id"]
