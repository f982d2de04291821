"""The usage ledger: what each key has used."""

from spyglass_server.ledger.data_dir import lock_data_dir, read_server_id
from spyglass_server.ledger.ledger import Ledger, Record, Total
from spyglass_server.ledger.sqlite import SqliteLedger

__all__ = ["Ledger", "Record", "SqliteLedger", "Total", "lock_data_dir", "read_server_id"]
