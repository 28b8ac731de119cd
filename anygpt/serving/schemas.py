"""Bodies of requests and answers, in OpenAI's names. Fields that OpenAI doesn't have are marked as extensions."""

from abc import ABC, abstractmethod
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

MAX_TEXT = 100_000
MAX_CHOICES = 8
MAX_SIDE_PX = 2048
"""Of a picture that is asked for."""


def _encodable(text: str) -> str:
    """JSON can hold halves of characters (lone surrogates), which no encoding has."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("holds half a character (a lone surrogate)") from None
    return text


def _affordable(size: str) -> str:
    if size != "auto" and max(map(int, size.split("x"))) > MAX_SIDE_PX:
        raise ValueError(f"the limit is {MAX_SIDE_PX} on each side")
    return size


def _unchanged(speed: float | None) -> float | None:
    if speed not in (None, 1.0):
        raise ValueError("1 is the only speed")
    return speed


PlainText = Annotated[str, Field(max_length=MAX_TEXT), AfterValidator(_encodable)]
PictureSize = Annotated[str, Field(pattern=r"^(auto|[1-9][0-9]{1,3}x[1-9][0-9]{1,3})$"), AfterValidator(_affordable)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
SoundFormatName = Literal["wav", "mp3", "flac", "opus", "pcm", "pcm16"]


class Body(BaseModel):
    """Fields that are not known are left out, as clients send what other servers understand."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


def _shown(**example: Any) -> ConfigDict:
    """A body that the page of the API has to begin with; its own would be all fields with values like "string"."""
    return ConfigDict(json_schema_extra={"examples": [example]})


class TextPart(Body):
    type: Literal["text"]
    text: PlainText


class RefusalPart(Body):
    type: Literal["refusal"]
    refusal: PlainText


class ImageUrl(Body):
    url: str = Field(description="A data URL; a remote one where the server allows it.")
    detail: str | None = None


class ImagePart(Body):
    type: Literal["image_url"]
    image_url: ImageUrl


class VideoPart(Body):
    type: Literal["video_url"]
    video_url: ImageUrl = Field(description="Extension, as in vLLM: MP4, WebM, AVI or GIF.")


class InputAudio(Body):
    data: str = Field(description="The file, in base64.")
    format: str | None = Field(None, description="WAV, MP3, FLAC and OGG are told apart by their content.")
    modality: str = Field("speech", description='Extension: "music" for a piece of music.')


class AudioPart(Body):
    type: Literal["input_audio"]
    input_audio: InputAudio


class SystemMessage(Body):
    role: Literal["system", "developer"]
    content: PlainText | list[TextPart]


UserPart = Annotated[TextPart | ImagePart | VideoPart | AudioPart, Field(discriminator="type")]


class UserMessage(Body):
    role: Literal["user"]
    content: PlainText | list[UserPart]


class AudioReference(Body):
    id: str = Field(max_length=200)


class AssistantMessage(Body):
    role: Literal["assistant"]
    content: PlainText | list[Annotated[TextPart | RefusalPart, Field(discriminator="type")]] | None = None
    audio: AudioReference | None = None
    images: list[ImagePart] | None = Field(None, description="Extension: as in this server's answers.")
    videos: list[VideoPart] | None = Field(None, description="Extension, likewise.")


Message = Annotated[SystemMessage | UserMessage | AssistantMessage, Field(discriminator="role")]


class AudioOptions(Body):
    voice: Any = Field(None, description="A name or object; the model has no named voices, and takes any.")
    format: SoundFormatName = "wav"
    voice_prompt: str | None = Field(None, description="Extension: data URL of a sample of the voice.")


class StreamOptions(Body):
    include_usage: bool | None = None


class ChatRequest(Body):
    """`POST /v1/chat/completions`"""

    model_config = _shown(messages=[{"role": "user", "content": "What is a banana?"}], modalities=["text"])

    model: str | None = None
    messages: list[Message] = Field(min_length=1, max_length=1000)
    modalities: list[str] | None = Field(
        None,
        max_length=8,
        description='"text" alone for text only; with "audio" (speech), "image" or "music" the answer contains one. '
        "Without it the model chooses.",
    )
    audio: AudioOptions | None = None
    max_tokens: int | None = Field(None, ge=1, lt=2**31, description="Of text.")
    max_completion_tokens: int | None = Field(None, ge=1, lt=2**31, description="Of text.")
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0, lt=2**31, description="Extension.")
    repetition_penalty: float | None = Field(None, gt=0, le=10, description="Extension.")
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    seed: Seed | None = None
    stop: PlainText | Annotated[list[PlainText], Field(max_length=8)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    tools: list[Any] | None = None
    functions: list[Any] | None = None
    logprobs: bool | None = None
    response_format: dict[str, Any] | None = None
    logit_bias: dict[str, Any] | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None

    def unsupported(self) -> str | None:
        """A field that asks for what there isn't."""
        is_other_format = self.response_format is not None and self.response_format.get("type") != "text"
        asked = {
            "tools": self.tools,
            "functions": self.functions,
            "logprobs": self.logprobs,
            "response_format": is_other_format,
            "logit_bias": self.logit_bias,
            "frequency_penalty": self.frequency_penalty,
            "presence_penalty": self.presence_penalty,
        }
        return next((name for name, value in asked.items() if value), None)


class MediaSampling(Body):
    """Extensions: how the codes of a picture or sound are drawn; by default as `config/` says."""

    seed: Seed | None = None
    temperature: float | None = Field(None, ge=0, le=10)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0, lt=2**31)
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    guidance_scale: float | None = Field(None, ge=0, le=100)
    best_of: int | None = Field(None, ge=1, le=MAX_CHOICES, description="Has no effect on what is streamed.")
    max_new_tokens: int | None = Field(None, ge=1, lt=2**31)
    min_new_tokens: int | None = Field(None, ge=0, lt=2**31)

    def settings(self) -> dict[str, Any]:
        """Those that were given, but for the seed, as `AnyGPT.run` takes them."""
        given = self.model_dump(include=set(MediaSampling.model_fields) - {"seed"})
        return {name: value for name, value in given.items() if value is not None}


class ImageRequest(MediaSampling):
    """`POST /v1/images/generations`"""

    model_config = _shown(prompt="a large red apple on a white background", seed=1)

    model: str | None = None
    prompt: PlainText = Field(min_length=1)
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    size: PictureSize | None = Field(None, description="The picture is scaled to it.")
    response_format: Literal["b64_json", "url"] | None = Field(None, description='"url" gives a data URL.')
    output_format: Literal["png", "jpeg", "webp"] | None = None
    stream: Literal[False] | None = None


class SoundRequest(MediaSampling, ABC):
    model: str | None = None
    response_format: SoundFormatName | Literal["aac"] | None = Field(None, description='"mp3" by default.')
    stream_format: Literal["audio", "sse"] | None = Field(
        None, description="Send the sound while it is made: `audio` as wav or pcm, `sse` as server-sent events."
    )

    @property
    @abstractmethod
    def text(self) -> str:
        """What is to be heard."""

    @property
    def voice_sample(self) -> str | None:
        """A data URL."""
        return None


class SpeechRequest(SoundRequest):
    """`POST /v1/audio/speech`"""

    model_config = _shown(input="hello there", response_format="wav")

    input: PlainText = Field(min_length=1)
    voice: Any = Field(None, description="A name or object; the model has no named voices, and takes any.")
    voice_prompt: str | None = Field(None, description="Extension: data URL of a sample of the voice.")
    instructions: PlainText | None = Field(None, description="Has no effect.")
    speed: Annotated[float | None, AfterValidator(_unchanged)] = Field(None, description="1 is the only speed.")

    @property
    def text(self) -> str:
        return self.input

    @property
    def voice_sample(self) -> str | None:
        return self.voice_prompt


class MusicRequest(SoundRequest):
    """`POST /v1/audio/music`, an extension."""

    model_config = _shown(prompt="a slow sad piano piece", response_format="wav")

    prompt: PlainText = Field(min_length=1)

    @property
    def text(self) -> str:
        return self.prompt


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(BaseModel):
    error: ErrorDetail


class ModelCard(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "anygpt"
    modalities: list[str] = Field(description="Extension.")
    context_length: int = Field(description="Extension.")


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int

    @classmethod
    def of(cls, prompt: int, completion: int) -> "Usage":
        return cls(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)


class AnswerAudio(BaseModel):
    id: str
    data: str = Field(description="The file, in base64.")
    expires_at: int = Field(description="Until when `audio: {id}` in a later request is understood.")
    transcript: str
    modality: str = Field(description="Extension: speech or music.")


class AnswerImage(BaseModel):
    type: Literal["image_url"] = "image_url"
    image_url: ImageUrl
    index: int


class AnswerVideo(BaseModel):
    type: Literal["video_url"] = "video_url"
    video_url: ImageUrl
    index: int


class AnswerMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str | None = Field(description="None where the answer is spoken: then it is the sound's transcript.")
    refusal: None = None
    audio: AnswerAudio | None = None
    audios: list[AnswerAudio] | None = Field(None, description="Extension: all sounds, where there are several.")
    images: list[AnswerImage] | None = Field(None, description="Extension: pictures, as OpenRouter has them.")
    videos: list[AnswerVideo] | None = Field(None, description="Extension: videos (MP4), likewise.")
    heard: str | None = Field(None, description="Extension: what the model heard in a spoken message.")


class Choice(BaseModel):
    index: int
    message: AnswerMessage
    finish_reason: Literal["stop", "length"]
    logprobs: None = None


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


class GeneratedImage(BaseModel):
    b64_json: str | None = None
    url: str | None = None


class ImageUsage(BaseModel):
    input_tokens: int
    input_tokens_details: dict[str, int]
    output_tokens: int
    total_tokens: int


class ImagesResponse(BaseModel):
    created: int
    data: list[GeneratedImage]
    output_format: str
    size: str
    usage: ImageUsage


class TranscriptionUsage(BaseModel):
    type: Literal["tokens"]
    input_tokens: int
    output_tokens: int
    total_tokens: int


class Transcription(BaseModel):
    text: str
    usage: TranscriptionUsage


class Health(BaseModel):
    status: Literal["ok", "failed"]
    model: str
    running: int
    waiting: int
