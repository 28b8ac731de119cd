"""`anygpt base`: one-line prompts, from the command line, standard input or a terminal."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anygpt.cli.console import (
    QUIT,
    LineReader,
    Progress,
    interact,
    print_json,
    print_mistake,
    printable,
)
from anygpt.errors import AnyGPTError
from anygpt.forms import describe_forms, parse_form
from anygpt.media import ensure_writable
from anygpt.modality import MODALITIES

if TYPE_CHECKING:
    from anygpt.engine import AnyGPT, Result


def base(
    *,
    prompt: list[str] | None = None,
    model_name_or_path: str | None = None,
    image_tokenizer_path: str | None = None,
    speech_tokenizer_path: str | None = None,
    speech_tokenizer_config: str | None = None,
    soundstorm_path: str | None = None,
    music_tokenizer_path: str | None = None,
    audio_tokenizer_path: str | None = None,
    unclip_path: str | None = None,
    output_dir: Path = Path("infer_output/base"),
    seed: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
    json: bool = False,
) -> None:
    """Answer prompts such as "text|image|a red apple" with a base model.

    Without --prompt, prompts are read line by line from standard input; on a terminal, `help` shows their forms.
    Pictures and sounds are saved, and their paths printed. The exit code is 2 when a prompt could not be answered.

    Args:
        prompt: A prompt to answer; give the flag several times for several.
        model_name_or_path: Folder of a model, or the name of a shipped one; without it the shipped base model.
        image_tokenizer_path: Image tokenizer: a folder of ours, or the released seed_quantizer.pt.
        speech_tokenizer_path: Speech tokenizer: a folder of ours, or the released SpeechTokenizer weights.
        speech_tokenizer_config: The config.json of released SpeechTokenizer weights, where it isn't beside them.
        soundstorm_path: Released SoundStorm weights.
        music_tokenizer_path: Music tokenizer: a folder of ours, or an Encodec folder or hub name.
        audio_tokenizer_path: Tokenizer of sound effects, likewise.
        unclip_path: Folder or hub name of the diffusion pipeline that paints a released model's pictures.
        output_dir: Folder for pictures and sounds.
        seed: The same seed gives the same answers.
        device: auto, cpu, cuda or cuda:N.
        dtype: auto, float32, bfloat16 or float16.
        json: Print one JSON object per answer.
    """
    output_dir = ensure_writable(output_dir)
    if prompt is not None:
        _check_any_form(prompt)
    from anygpt.engine import AnyGPT

    model = AnyGPT.from_pretrained(
        model_name_or_path,
        image_tokenizer_path=image_tokenizer_path,
        speech_tokenizer_path=speech_tokenizer_path,
        speech_tokenizer_config=speech_tokenizer_config,
        soundstorm_path=soundstorm_path,
        music_tokenizer_path=music_tokenizer_path,
        audio_tokenizer_path=audio_tokenizer_path,
        unclip_path=unclip_path,
        device=device,
        dtype=dtype,
        seed=seed,
    )
    console = _Console(model, output_dir, as_json=json)
    if prompt is None and sys.stdin.isatty():
        print("Type a prompt, `help` for the forms, or `quit`.")
        interact(LineReader(), console.handle, leave="quit")
        return
    lines = prompt if prompt is not None else (line for line in map(str.strip, sys.stdin) if line)
    if not all([console.answer(line) for line in lines]):
        sys.exit(2)


def _check_any_form(prompts: Sequence[str]) -> None:
    """Raise the first prompt's mistake, before a model is loaded, when none of them has a known form."""
    mistakes: list[AnyGPTError] = []
    for prompt in prompts:
        try:
            parse_form(prompt, MODALITIES.values())
        except AnyGPTError as error:
            mistakes.append(error)
    if len(mistakes) == len(prompts):
        raise mistakes[0]


class _Console:
    """Answers prompts and prints the results."""

    def __init__(self, model: "AnyGPT", output_dir: Path, *, as_json: bool) -> None:
        self._model = model
        self._output_dir = output_dir
        self._as_json = as_json

    def handle(self, line: str) -> bool:
        """Do what a line typed at the terminal asks, and say whether to go on."""
        if line in QUIT:
            return False
        if line == "help":
            print(self.help())
        else:
            self.answer(line)
        return True

    def help(self) -> str:
        """The prompts that the model understands."""
        forms = describe_forms(self._model.specs.values())
        return "\n".join([*(f"  {form}" for form in forms), r"  \| is a bar inside a text; help, quit"])

    def answer(self, prompt: str) -> bool:
        """Answer one prompt, print the answer or the mistake, and say whether it was answered."""
        progress = Progress()
        try:
            result = self._model.run(prompt, progress=progress)
            path = result.save(self._output_dir) if result.media is not None else None
        except AnyGPTError as error:
            progress.clear()
            print_mistake(prompt, str(error), as_json=self._as_json)
            return False
        except BaseException:
            progress.clear()
            raise
        progress.clear()
        self._print(result, path)
        return True

    def _print(self, result: "Result", path: Path | None) -> None:
        if not self._as_json:
            print(printable(result.text or "") if path is None else path, flush=True)
            return
        row: dict[str, Any] = {"prompt": result.prompt, "modality": result.modality}
        row |= {"text": result.text} if path is None else {"path": str(path)}
        if result.codes_KT is not None:
            row["frames"] = result.codes_KT.shape[1]
        if result.audio is not None:
            row["duration_s"] = round(result.audio.duration_s, 3)
        row |= {"seed": result.seed, "seconds": round(result.seconds, 3)}
        print_json(row)
