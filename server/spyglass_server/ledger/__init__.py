"""What has been used, and by whom."""

from spyglass_server.ledger.ledger import Ledger, Record, Total

__all__ = ["Ledger", "Record", "Total"]
