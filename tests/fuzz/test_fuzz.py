"""Every target holds for some examples, always the same; and the command says what it tried, and what it found."""

import logging
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from fuzz.target import Target
from fuzz.targets import TARGETS
from stack import clean_environ

_SEED = 1


@pytest.mark.parametrize("target", TARGETS.values(), ids=list(TARGETS))
def test_nothing_breaks(target: Target, caplog: pytest.LogCaptureFixture) -> None:
    outcomes = Counter[str]()

    def note(outcome: str) -> None:
        outcomes[outcome] += 1

    with target.opened(note) as batch:
        batch(_SEED, target.smoke_size)
    assert outcomes.total() >= target.smoke_size
    assert len(outcomes) > 1, "all examples are alike"
    assert not [record for record in caplog.records if record.name == "asyncio"], "a task has failed unseen"
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR and record.exc_info]


def _fuzz(*arguments: str, code: str = "import fuzz.__main__ as fuzz") -> tuple[int, str]:
    """The command, with a line of Python before it."""
    folder = Path(__file__).resolve().parents[1]
    environ = clean_environ()
    environ["PYTHONPATH"] = f"{folder}:{environ.get('PYTHONPATH', '')}"
    program = f"import sys\n{code}\nsys.exit(fuzz.main())"
    command = [sys.executable, "-c", program, *arguments]
    ended = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=300, check=False)
    return ended.returncode, ended.stdout + ended.stderr


def test_the_command_tells_what_it_has_tried() -> None:
    code, said = _fuzz("--target", "tool_calls", "--seed", "3")
    assert code == 0, said
    found = re.search(r"nothing was found up to seed 3: ([\d,]+) examples in \d+ s, \d+ a second, (\d+) distinct", said)
    assert found is not None, said
    assert int(found[1].replace(",", "")) >= TARGETS["tool_calls"].batch_size
    assert int(found[2]) > 3


def test_the_command_shows_the_least_example_that_fails_and_the_seed_that_repeats_it() -> None:
    broken = "\n".join(
        (
            "import fuzz.__main__ as fuzz",
            "from spyglass_server.prompt.tool_calls import ToolParser",
            "ToolParser.finish = lambda self: ''",  # what was held back is lost
        )
    )
    code, said = _fuzz("--target", "tool_calls", "--minutes", "1", "--first-seed", "5", code=broken)
    assert code == 1, said
    assert re.search(r"_Answer\(\('[^']+',\), frozenset\(\), False\)", said), said
    assert 'make fuzz ARGS="--target tool_calls --seed 5" repeats it' in said
    again, same = _fuzz("--target", "tool_calls", "--seed", "5", code=broken)
    assert again == 1
    assert re.findall(r"_Answer\(.*", same) == re.findall(r"_Answer\(.*", said)
