"""No case of the contract is without a test."""

import re
from pathlib import Path

from contract.cases import CASES, case_of


def test_every_case_has_a_test() -> None:
    names = set[str]()
    for path in Path(__file__).parent.glob("test_*.py"):
        names.update(re.findall(r"^(?:async )?def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE))
    tested = {case for name in names if (case := case_of(name)) is not None}
    assert tested == CASES.keys()
