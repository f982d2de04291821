"""The usage ledger: what each key has used."""

from spyglass_server.ledger.data_dir import lock_data_dir, read_server_id
from spyglass_server.ledger.ledger import Ledger
from spyglass_server.ledger.record import Record
from spyglass_server.ledger.reports import Filter, Group, Sum

__all__ = ["Filter", "Group", "Ledger", "Record", "Sum", "lock_data_dir", "read_server_id"]
