"""An OpenAI-compatible endpoint: its settings, and requests whose failures are sorted into ours and the item's."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from anygpt.config import from_dict
from anygpt.errors import AnyGPTError
from anygpt.synth.generators import BadItem

Answer = TypeVar("Answer")

KEY_VARIABLE, URL_VARIABLE = "OPENAI_API_KEY", "OPENAI_BASE_URL"


@dataclass(frozen=True, kw_only=True)
class EndpointOptions:
    """What `--option openai.<name>=<value>` may set. The key comes from OPENAI_API_KEY, never from here."""

    url: str = ""
    """Base URL, such as http://localhost:8000/v1; else OPENAI_BASE_URL, else OpenAI's own."""
    model: str = ""
    """Writes conversations."""
    image_model: str = ""
    image_size: str = "1024x1024"
    image_response_format: str = "b64_json"
    """Empty where the endpoint refuses the field and sends base64 anyway."""
    speech_model: str = ""
    speech_format: str = "mp3"
    voices: str = "alloy"
    """Names with commas between; one is drawn for each text."""
    temperature: float = 1.0
    timeout_s: float = 120.0
    retries: int = 6
    """Of a request that met a busy or failing server, at growing distance."""
    attempts: int = 3
    """Requests for one thing, each told what was wrong with the answer before."""

    def __post_init__(self) -> None:
        for name, least in (("temperature", 0), ("timeout_s", 0.001), ("retries", 0), ("attempts", 1)):
            if getattr(self, name) < least:
                raise AnyGPTError(f"'{name}' is {getattr(self, name)}, expected at least {least}")

    @classmethod
    def parse(cls, options: Mapping[str, str]) -> "EndpointOptions":
        """The options, numbers converted. Raises AnyGPTError for an unknown one or a bad value."""
        values: dict[str, Any] = dict(options)
        for name, kind in (("temperature", float), ("timeout_s", float), ("retries", int), ("attempts", int)):
            if name in values:
                try:
                    values[name] = kind(values[name])
                except ValueError:
                    pass  # from_dict says what is expected
        return from_dict(cls, values, "--option openai")


class Endpoint:
    """The client of an endpoint."""

    def __init__(self, options: EndpointOptions) -> None:
        try:
            import openai
        except ImportError:
            raise AnyGPTError(
                "an OpenAI-compatible endpoint needs a package; type: pip install 'anygpt[synth]'"
            ) from None
        url = options.url or os.environ.get(URL_VARIABLE)
        key = os.environ.get(KEY_VARIABLE)
        if not url and not key:
            raise AnyGPTError(
                f"{KEY_VARIABLE} is not set; set it, or give an endpoint of your own: --option openai.url=URL"
            )
        self._openai = openai
        self.client = openai.OpenAI(
            base_url=url, api_key=key or "none", timeout=options.timeout_s, max_retries=options.retries
        )

    def ask(self, request: Callable[[Any], Answer]) -> Answer:
        """The answer to `request(client)`, which the client repeats where the server is busy or out of reach.

        Raises BadItem where the server refuses this request (400, 413, 422), AnyGPTError where it would refuse any.
        """
        try:
            return request(self.client)
        except (self._openai.BadRequestError, self._openai.UnprocessableEntityError) as error:
            raise BadItem(f"the endpoint refuses the request: {_said(error)}") from None
        except self._openai.APIStatusError as error:
            if error.status_code == 413:
                raise BadItem("the endpoint refuses the request: too large") from None
            hint = f"; check {KEY_VARIABLE}" if error.status_code in (401, 403) else ""
            raise AnyGPTError(f"{self.client.base_url}: HTTP {error.status_code}: {_said(error)}{hint}") from None
        except self._openai.APIConnectionError as error:
            reason = error.__cause__ or error
            raise AnyGPTError(f"{self.client.base_url}: can't be reached ({_said(reason)}); is it running?") from None
        except self._openai.OpenAIError as error:
            raise BadItem(f"the endpoint's answer is unreadable: {_said(error)}") from None


def _said(error: Exception | BaseException) -> str:
    """The server's own words, as one short line."""
    body = getattr(error, "body", None)
    message = body.get("message") if isinstance(body, dict) else None
    return " ".join(str(message or error or type(error).__name__).split())[:200]
