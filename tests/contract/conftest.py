"""The stack that most cases are tried on, and doors to it over which the oracle watches."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from contract.doors import MODEL, OTHER_KEY, Doors, about_images
from contract.oracle import Oracle
from fake_service import BRIDGE_KEY
from pictures import data_uri, disc
from stack import Stack


@pytest.fixture(scope="session")
def stack(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Serves random weights, fetches images from `localhost`, and has done one of everything."""
    options = ("--model", str(tiny_checkpoint), "--served-model-name", MODEL, "--api-key", OTHER_KEY)
    images = ("--bridge-key", BRIDGE_KEY, "--allow-image-host", "localhost")
    with Stack(tmp_path_factory.mktemp("contract"), *options, *images) as stack:
        with Doors(stack, stack.key) as doors:
            for _ in range(2):  # two processes decode pictures
                assert doors.chat(about_images(data_uri(disc("red")))).status == 200
            assert doors.chat(response_format={"type": "json_object"}).status == 200
        yield stack


@pytest.fixture(scope="session")
def oracle(stack: Stack) -> Iterator[Oracle]:
    """Remembers how the stack was."""
    with Doors(stack, stack.key) as doors:
        yield Oracle(stack, doors)


@pytest.fixture
def doors(stack: Stack, oracle: Oracle) -> Iterator[Doors]:
    """HTTP and gRPC of the stack; after the test the oracle sees to it that all is as it should be."""
    with Doors(stack, stack.key) as doors, oracle.watching(doors):
        yield doors
