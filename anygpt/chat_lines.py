r"""The lines of a conversation: `interleaved|what is this?|text|photo.jpg`, a bare text, or a command such as `|undo`.

The form is the released chat model's. A bar inside a text is written `\|`, a comma inside a file name `\,`.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from anygpt.errors import AnyGPTError, nearest
from anygpt.forms import TEXT, quoted, split_bars
from anygpt.media import kind_of_file
from anygpt.modality import MODALITIES, ModalitySpec

TASK = "interleaved"
FIELDS = (
    "text instruction", "modality", "image path", "voice prompt", "speech instruction", "music path", "sound path",
    "video path",
)  # fmt: skip
"""What may follow the task, in order; the released code exchanges the third and fourth, and lacks the last two."""
COMMANDS = {
    "clear": "forget the conversation",
    "undo": "forget the last exchange",
    "save": "write the conversation to FILE (JSON), its media beside it",
    "load": "go on with the conversation in FILE",
    "history": "show the conversation",
    "help": "show this",
    "quit": "leave",
}
WITH_FILE = ("save", "load")
"""The commands that take a file."""
_KINDS = {"image": "picture", "audio": "sound", "video": "video"}

_RELEASED_TASKS = (
    "Text-to-Image Generation",
    "Text-to-Music Generation",
    "Multimodal Prompt Image Generation",
    "Image Conversation",
    "Image Captioning",
    "Image QA",
    "Multi-Image Understanding",
    "Speech-Instruction",
    "Speech-Instruction2",
    "Speech-Instruction-Speech",
    "Speech-Instruction-Text",
    "Text-Instruction",
    "Text-Instruction2",
    "Seed-Bench",
    "customized",
)
"""Tasks that the released chat code also accepts; each only adds a sentence to the instruction."""


@dataclass(frozen=True, kw_only=True)
class Message:
    """A line that asks the model something, as typed; no file of it has been looked at."""

    text: str = ""
    answer: str | None = None
    """Modality that the answer must have, or "text"; None leaves it to the model."""
    images_or_voice: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    """The files of the fields `image path` and `voice prompt`, in whichever order they were given."""
    speech: tuple[str, ...] = ()
    music: tuple[str, ...] = ()
    audio: tuple[str, ...] = ()
    video: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Attachments:
    """The files of a message, by what they are."""

    media: tuple[tuple[str, str], ...] = ()
    """(modality, path) of everything that the model is to see or hear."""
    voice: str | None = None
    """A recording of the voice that a spoken answer is to have."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """A line such as `|undo` or `|save talk.json`."""

    name: str
    """One of `COMMANDS`."""
    argument: str = ""


def parse_line(line: str, specs: Iterable[ModalitySpec] = MODALITIES.values()) -> Message | Command:
    """Take a line apart, without touching a file; `specs` are the modalities that an answer may have.

    Raises AnyGPTError, one line, for an unknown task, command or modality, too many fields, a file name left empty,
    and for two instructions or none.
    """
    parts = split_bars(line)
    if len(parts) == 1:
        if not parts[0]:
            raise AnyGPTError("the line is empty")
        return Message(text=parts[0])
    if not parts[0]:
        return _command(parts[1], parts[2:])
    if parts[0].lower() != TASK:
        raise AnyGPTError(_unknown_task(parts))
    if len(parts) > 1 + len(FIELDS):
        raise AnyGPTError(rf"{TASK} takes {len(FIELDS)} fields, got {len(parts) - 1}: write a bar inside a text as \|")
    text, modality, *files = [*parts[1:], *[""] * (1 + len(FIELDS) - len(parts))]
    third, fourth, *others = (_files(name, field) for name, field in zip(FIELDS[2:], files, strict=True))
    speech, music, audio, video = others
    answer, both = _answer(modality, specs), (third, fourth)
    message = Message(
        text=text, answer=answer, images_or_voice=both, speech=speech, music=music, audio=audio, video=video
    )
    if text and speech:
        raise AnyGPTError("two instructions, one in text and one in speech: leave one of them out")
    if not text and not speech:
        raise AnyGPTError("no instruction: give one in text (the first field) or in speech (the fifth)")
    return message


def find_attachments(message: Message) -> Attachments:
    """The files of a message, pictures told from voices by their content.

    Raises AnyGPTError for a file that is missing or neither picture nor sound, is in the wrong field, or when there is
    more than one voice.
    """
    images, voices = _images_and_voices(message.images_or_voice)
    for name, files in zip(FIELDS[4:], (message.speech, message.music, message.audio), strict=False):
        for file in files:
            if (kind := kind_of_file(file)) != "audio":
                raise AnyGPTError(f"{file}: is a {_KINDS[kind]}, expected a sound for the {name}")
    if len(voices) > 1:
        raise AnyGPTError(f"{len(voices)} voice prompts ({', '.join(map(quoted, voices))}), expected one")
    sounds = {"music": message.music, "audio": message.audio, "speech": message.speech}
    fields = {"image": images, "video": message.video, **sounds}
    media = [(name, file) for name, files in fields.items() for file in files]
    return Attachments(media=tuple(media), voice=voices[0] if voices else None)


def describe_lines(specs: Iterable[ModalitySpec] = MODALITIES.values()) -> list[str]:
    """What the help of the chat says about lines and commands."""
    names = [spec.name for spec in specs]
    commands = [(f"|{name}{' FILE' if name in WITH_FILE else ''}", about) for name, about in COMMANDS.items()]
    return [
        "TEXT",
        "    an instruction in text",
        "|".join([TASK, *(f"{{{name}}}" for name in FIELDS)]),
        "    fields at the end may be left out; several files in a field are separated by commas",
        f"    modality of the answer: {', '.join([*names, TEXT])}, or empty: the model chooses",
        "    image path and voice prompt (a recording of the voice to answer in) may change places",
        "    exactly one of text instruction and speech instruction is needed",
        *(f"{form:16}{about}" for form, about in commands),
        r"\| is a bar inside a text, \, a comma inside a file name",
    ]


def _command(text: str, rest: list[str]) -> Command:
    word, _, argument = text.partition(" ")
    name, argument = word.lower(), argument.strip()
    if name not in COMMANDS:
        known = [f"|{command}" for command in COMMANDS]
        typed = f"|{word}"
        raise AnyGPTError(
            f"unknown command {quoted(typed)}{nearest(typed.lower(), known)}; known: {', '.join(known)}; "
            f"a message with files begins with {TASK}|"
        )
    if any(rest):
        raise AnyGPTError(f"|{name} takes no fields, got {quoted('|'.join(rest))}")
    if name in WITH_FILE and not argument:
        raise AnyGPTError(f"|{name} needs a file name: |{name} talk.json")
    if name not in WITH_FILE and argument:
        raise AnyGPTError(f"|{name} takes nothing after it, got {quoted(argument)}")
    return Command(name=name, argument=argument)


def _unknown_task(parts: list[str]) -> str:
    task = parts[0]
    if len(parts) >= 3 and {task.lower(), parts[1].lower()} <= {*MODALITIES, TEXT}:
        return (
            f"{quoted('|'.join(parts[:2]) + '|...')} is a prompt of `anygpt base`; "
            f"in a conversation say it in words, for example {TASK}|draw a red apple|image"
        )
    released = next((name for name in _RELEASED_TASKS if name.lower() == task.lower()), None)
    if released is not None:
        return (
            f"the task '{released}' only words an instruction in the released code: "
            f"say what you want and write {TASK}|{{text instruction}}|{{modality}}|{{image path}}|..."
        )
    hint = nearest(task.lower(), [TASK])
    return rf"unknown task {quoted(task)}{hint}, expected {TASK}|...; a bar inside a text is written \|"


def _answer(modality: str, specs: Iterable[ModalitySpec]) -> str | None:
    name = modality.lower()
    known = [*(spec.name for spec in specs), TEXT]
    if name and name not in known:
        raise AnyGPTError(f"unknown modality {quoted(modality)}{nearest(name, known)}; known: {', '.join(known)}")
    return name or None


def _files(name: str, field: str) -> tuple[str, ...]:
    if not field:
        return ()
    files = tuple(part.replace(r"\,", ",").strip() for part in re.split(r"(?<!\\),", field))
    if not all(files):
        raise AnyGPTError(rf"{name}: an empty file name in {quoted(field)}; a comma inside a name is written \,")
    return files


def _images_and_voices(fields: tuple[tuple[str, ...], tuple[str, ...]]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The two fields as pictures and sounds, whichever came first."""
    found: dict[str, tuple[str, ...]] = {}
    for files in fields:
        kinds: dict[str, str] = {file: kind_of_file(file) for file in files}
        if video := next((file for file in files if kinds[file] == "video"), None):
            raise AnyGPTError(f"{quoted(video)} is a video: it belongs in the last field ({FIELDS[-1]})")
        if len(set(kinds.values())) > 1:
            both = {kind: next(file for file in files if kinds[file] == kind) for kind in kinds.values()}
            raise AnyGPTError(
                f"{quoted(both['image'])} is a picture and {quoted(both['audio'])} a sound: "
                f"image path and voice prompt are separate fields"
            )
        for kind in set(kinds.values()):
            if kind in found:
                what = {"image": "pictures", "audio": "sounds"}[kind]
                advice = {"image": "put all pictures into one, with commas", "audio": "only one voice is possible"}
                raise AnyGPTError(f"both the image path and the voice prompt are {what}: {advice[kind]}")
            found[kind] = files
    return found.get("image", ()), found.get("audio", ())
