"""Servers with the tiny model."""

import contextlib
from collections.abc import Callable, Iterator

import pytest
from fixtures_serving import Running, listening

from anygpt import AnyGPT
from anygpt.serving.app import ServerSettings


@pytest.fixture(scope="module")
def server(model: AnyGPT) -> Iterator[Running]:
    """With small limits, which no well-meant request comes near."""
    with listening(model, ServerSettings(batch_size=4, max_body_bytes=2_000_000)) as running:
        yield running


@pytest.fixture
def serve(model: AnyGPT) -> Iterator[Callable[..., Running]]:
    """Starts a server with settings of one's own."""
    with contextlib.ExitStack() as stack:
        yield lambda **settings: stack.enter_context(listening(model, ServerSettings(**settings)))
