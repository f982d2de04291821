"""A pytest plugin for `make contract`: a line for each case of the contract. A case that was not run fails the run."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from contract.cases import CASES, case_of


@dataclass
class _Result:
    """What the tests of one case came to."""

    num_tests: int = 0
    failed: bool = False
    took_s: float = 0.0

    @property
    def word(self) -> str:
        if not self.num_tests:
            return "NOT RUN"
        return "FAIL" if self.failed else "PASS"


_RESULTS = pytest.StashKey[dict[str, _Result]]()


def pytest_configure(config: pytest.Config) -> None:
    """Counts from nothing."""
    config.stash[_RESULTS] = defaultdict(_Result)
    config.pluginmanager.register(_Recorder(config.stash[_RESULTS]))


class _Recorder:
    def __init__(self, results: dict[str, _Result]) -> None:
        self._results = results

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Adds up set-up, call and tear-down, where the oracle speaks, of all tests of a case."""
        case = case_of(report.nodeid.partition("::")[2])
        if case is None:
            return
        result = self._results[case]
        result.num_tests += report.when == "call"
        result.failed |= report.failed
        result.took_s += report.duration if report.when == "call" else 0


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fails a run that has left a case out."""
    results = session.config.stash[_RESULTS]
    if session.exitstatus == pytest.ExitCode.OK and any(case not in results for case in CASES):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Writes the table."""
    terminalreporter.section("the contract under attack and under faults")
    for line in _lines(config.stash[_RESULTS]):
        terminalreporter.write_line(line)


def _lines(results: dict[str, _Result]) -> Iterator[str]:
    for case, title in CASES.items():
        result = results.get(case, _Result())
        variants = f"{result.num_tests} tests" if result.num_tests > 1 else ""
        yield f"{case:<4}{title:<62}{result.word:<8}{result.took_s:7.2f} s  {variants}".rstrip()
