"""What has been used, and by whom."""

from spyglass_server.ledger.ledger import Ledger, Record, Total
from spyglass_server.ledger.lock import lock_data_dir

__all__ = ["Ledger", "Record", "Total", "lock_data_dir"]
