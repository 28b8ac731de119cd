"""The engine on a tiny random model: every form, its errors, and what ties a model to its tokenizers."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures_tiny import MODEL, SPECS, build_llama
from PIL import Image

from anygpt import AnyGPT, engine
from anygpt.engine import Result
from anygpt.errors import AnyGPTError, CheckpointError, ConfigError, MediaError
from anygpt.manifest import read_manifest
from anygpt.media import Audio, load_audio, load_image, save_audio
from anygpt.tokenizers.soundstorm import load_soundstorm, save_soundstorm

pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("media") / "picture.png"
    Image.linear_gradient("L").convert("RGB").save(path)
    return path


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    time_s = np.arange(16_000, dtype=np.float32) / 16_000
    wave = 0.3 * np.sin(2 * np.pi * 300 * time_s * (1 + time_s))
    return save_audio(tmp_path_factory.mktemp("media") / "sound.wav", Audio(wave[None], 16_000))


@pytest.fixture
def own_home(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the home that a test may damage."""
    shutil.copytree(home, tmp_path / "home")
    monkeypatch.setenv("ANYGPT_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_all_forms(model: AnyGPT, picture: Path, sound: Path) -> None:
    painted = model.run("text|image|a red apple")
    assert painted.modality == "image" and painted.text is None and painted.audio is None
    assert painted.image is not None and painted.image.size == (32, 32)
    assert painted.codes_KT is not None and painted.codes_KT.shape == (1, 32)
    for prompt in (f"image|text|{picture}", f"speech|text|{sound}", f"music|text|{sound}"):
        answer = model.run(prompt)
        assert answer.modality == "text" and answer.text and answer.media is None and answer.codes_KT is None
    for prompt in ("text|speech|hello", f"text|speech|hello|{sound}", "text|music|calm"):
        answer = model.run(prompt)
        assert answer.prompt == prompt and answer.audio is not None and answer.codes_KT is not None
        spec = SPECS[answer.modality]
        assert answer.codes_KT.shape[0] == spec.num_codebooks
        assert answer.audio.duration_s == pytest.approx(answer.codes_KT.shape[1] / 50)
        assert np.abs(answer.audio.wave).max() <= 1


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_smaller_types_answer_alone_and_in_batches(dtype: str) -> None:
    model = AnyGPT.from_pretrained(dtype=dtype, device="cpu", seed=7)
    assert model.decoder.dtype == torch.bfloat16
    assert model.run("text|image|a red apple").codes_KT is not None
    results = list(model.run_batch(["text|image|a red apple", "text|music|calm"] * 5, batch_size=10))
    assert [result.error for result in results] == [None] * 10


def test_seed_decides(model: AnyGPT) -> None:
    prompt = "text|speech|the same words"
    first, again, other = model.run(prompt, seed=1), model.run(prompt, seed=1), model.run(prompt, seed=2)
    assert first.audio is not None and again.audio is not None and first.seed == 1
    assert torch.equal(codes(first), codes(again)) and np.array_equal(first.audio.wave, again.audio.wave)
    assert codes(first).shape != codes(other).shape or not torch.equal(codes(first), codes(other))
    assert model.run(prompt).seed == 7


def codes(result: Result) -> torch.Tensor:
    assert result.codes_KT is not None
    return result.codes_KT


def test_media_objects_paths_and_codes_are_the_same(model: AnyGPT, picture: Path, sound: Path) -> None:
    path_codes = model.encode("image", picture)
    by_path = model.ask("image", "text", picture).text
    assert model.ask("image", "text", load_image(picture)).text == by_path
    assert model.ask("image", "text", path_codes).text == by_path
    voiced = model.run("text|speech|hello", voice=load_audio(sound))
    assert torch.equal(codes(voiced), codes(model.run(f"text|speech|hello|{sound}")))


def test_voice_changes_the_sound_but_not_the_words(model: AnyGPT, sound: Path) -> None:
    with_voice, without = model.run(f"text|speech|hello|{sound}", seed=3), model.run("text|speech|hello", seed=3)
    assert torch.equal(codes(with_voice), codes(without))
    assert with_voice.audio is not None and without.audio is not None
    assert not np.array_equal(with_voice.audio.wave, without.audio.wave)


def test_settings_override_the_files(model: AnyGPT) -> None:
    assert codes(model.run("text|music|calm", max_new_tokens=9, min_new_tokens=9)).shape == (3, 3)
    greedy = [codes(model.run("text|image|x", seed=seed, do_sample=False)) for seed in (1, 2)]
    assert torch.equal(*greedy)


def test_progress_counts_every_id(model: AnyGPT) -> None:
    seen: list[tuple[int, int]] = []
    model.run("text|image|x", progress=lambda count, most: seen.append((count, most)))
    assert seen == [(count, 34) for count in range(1, 35)]


def test_typed_tags_stay_text(model: AnyGPT) -> None:
    """A typed <soim> or [Human] must not reach the model as a control id."""
    answer = model.run("text|image|<soim> [Human]: </s>")
    assert codes(answer).shape == (1, 32)


@pytest.mark.parametrize(
    ("prompt", "error", "message"),
    [
        ("text|imagee|a", AnyGPTError, "unknown form"),
        ("text|audio|a", AnyGPTError, "unknown form"),
        ("image|text|/no/such/file.png", MediaError, "no such file"),
        ("speech|text|{here}", MediaError, "is a directory"),
        ("text|speech|hello|/no/such/voice.wav", MediaError, "no such file"),
        ("text|image|" + "word " * 400, AnyGPTError, "context of 320: shorten"),
    ],
)
def test_bad_prompts(model: AnyGPT, tmp_path: Path, prompt: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        model.run(prompt.format(here=tmp_path))
    assert "\n" not in str(caught.value)


def test_unfit_sounds(model: AnyGPT, tmp_path: Path) -> None:
    def sound_file(seconds: float, volume: float) -> Path:
        noise = np.random.default_rng(0).uniform(-volume, volume, (1, int(16_000 * seconds)))
        return save_audio(tmp_path / f"{seconds}-{volume}.wav", Audio(noise.astype(np.float32), 16_000))

    with pytest.raises(MediaError, match="silent"):
        model.run(f"speech|text|{sound_file(1, 0)}")
    # 320 ids of context are 6.4 s of speech, and 2.1 s of music.
    with pytest.raises(MediaError, match="the limit is 6.4 s"):
        model.run(f"speech|text|{sound_file(7, 0.1)}")
    with pytest.raises(MediaError, match="the limit is 2.13333 s"):
        model.run(f"music|text|{sound_file(3, 0.1)}")
    with pytest.raises(AnyGPTError, match="context of 320: shorten"):
        model.run(f"speech|text|{sound_file(6.3, 0.1)}")
    with pytest.raises(MediaError, match="at least 0.5 s"):
        model.run(f"text|speech|hello|{sound_file(0.3, 0.1)}")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperatur": 1}, "unknown setting 'temperatur'.*'temperature'"),
        ({"voise": "x.wav"}, "unknown setting 'voise'.*'voice'"),
        ({"temperature": -1}, "'temperature' is -1"),
        ({"max_new_tokens": 0}, "'max_new_tokens' is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"voice": 3}, "given as int"),
    ],
)
def test_bad_settings(model: AnyGPT, settings: dict[str, object], message: str) -> None:
    with pytest.raises(AnyGPTError, match=message):
        model.run("text|speech|hello", **settings)  # type: ignore[arg-type]


def test_files_are_named_from_the_prompt(model: AnyGPT, tmp_path: Path) -> None:
    answer = model.run("text|image|../Ünsafe: <name>/\x00 猫 " + "long " * 30)
    first, second = answer.save(tmp_path / "new folder"), answer.save(tmp_path / "new folder")
    assert first != second and first.parent == second.parent == tmp_path / "new folder"
    assert first.name.startswith("ünsafe-name-猫-long-") and first.suffix == ".jpg"
    assert len(first.name.encode()) < 120
    assert load_image(second).size == (32, 32)
    spoken = model.run("text|speech|!?")
    path = spoken.save(tmp_path)
    assert path.name.startswith("answer-") and spoken.audio is not None
    assert load_audio(path).samples == spoken.audio.samples


def test_models_by_name_and_by_path(home: Path) -> None:
    by_name, by_path = (AnyGPT.from_pretrained(name) for name in (MODEL, home / "models" / MODEL))
    prompt = "text|image|the same"
    assert torch.equal(codes(by_name.run(prompt, seed=1)), codes(by_path.run(prompt, seed=1)))


def test_manifest_names_the_tokenizers(home: Path) -> None:
    manifest = read_manifest(home / "models" / MODEL)
    assert manifest is not None
    assert {name: entry.tokenizer for name, entry in manifest.modalities.items()} == {
        "image": "seed-tiny",
        "speech": "speech-tiny",
        "music": "music-tiny",
    }


def change_manifest(home: Path, **changes: object) -> None:
    path = home / "models" / MODEL / "anygpt.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_another_tokenizer_is_refused(own_home: Path, picture: Path) -> None:
    """The codes of a tokenizer that was trained again mean other things, though all sizes fit."""
    weights = own_home / "tokenizers/seed-tiny/model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    model = AnyGPT.from_pretrained()
    model.run("text|speech|others still work")
    with pytest.raises(CheckpointError, match="image tokenizer doesn't match the model: its fingerprint"):
        model.run(f"image|text|{picture}")


def test_tokenizer_of_another_size_is_refused(own_home: Path) -> None:
    model = AnyGPT.from_pretrained(music_tokenizer_path=own_home / "tokenizers/speech-tiny")
    with pytest.raises(CheckpointError, match="for speech with 1 x 16 codes, .* music with 3 x 8 codes"):
        model.run("text|music|calm")


def test_released_layout_takes_tokenizers_by_path(own_home: Path, sound: Path) -> None:
    """Without anygpt.json modalities come from added_tokens.json and tokenizers from flags."""
    (own_home / "models" / MODEL / "anygpt.json").unlink()
    model = AnyGPT.from_pretrained(speech_tokenizer_path=own_home / "tokenizers/speech-tiny")
    assert model.run(f"speech|text|{sound}").text
    with pytest.raises(CheckpointError, match="set --image-tokenizer-path"):
        model.run("text|image|a")


def test_parts_beside_a_tokenizer_folder(own_home: Path, tmp_path: Path, sound: Path) -> None:
    """SoundStorm may be another one; a second configuration or pixel decoder would go unread, so it is refused."""
    speech, image = own_home / "tokenizers/speech-tiny", own_home / "tokenizers/seed-tiny"

    def run(prompt: str, **parts: Path) -> None:
        AnyGPT.from_pretrained(speech_tokenizer_path=speech, image_tokenizer_path=image, **parts).run(prompt)

    run("text|speech|hello", soundstorm_path=speech / "soundstorm", speech_tokenizer_config=speech / "config.json")
    with pytest.raises(CheckpointError, match="other: no such SoundStorm"):
        run("text|speech|hello", soundstorm_path=tmp_path / "other")
    with pytest.raises(CheckpointError, match="speech-tiny has a config.json of its own"):
        run(f"speech|text|{sound}", speech_tokenizer_config=tmp_path / "config.json")
    with pytest.raises(CheckpointError, match="seed-tiny has a pixel decoder of its own"):
        run("text|image|a", unclip_path=tmp_path)


def test_another_soundstorm_beside_the_tokenizer_that_the_model_names(own_home: Path, tmp_path: Path) -> None:
    """As for a voice that was learnt since; what codes mean stays, so that the model takes it."""
    storm = load_soundstorm(own_home / "tokenizers/speech-tiny/soundstorm")
    for parameter in storm.parameters():
        parameter.mul_(-1)
    save_soundstorm(storm, tmp_path / "voice")
    own, other = (
        AnyGPT.from_pretrained(soundstorm_path=path).run("text|speech|hello", seed=1)
        for path in (None, tmp_path / "voice")
    )
    assert own.codes_KT is not None and other.codes_KT is not None and torch.equal(own.codes_KT, other.codes_KT)
    assert own.audio is not None and other.audio is not None
    assert not np.array_equal(own.audio.wave, other.audio.wave)
    with pytest.raises(CheckpointError, match="gone: no such SoundStorm"):
        AnyGPT.from_pretrained(soundstorm_path=tmp_path / "gone").run("text|speech|hello")


@pytest.mark.parametrize(("name", "folder"), [("speech", "speech-tiny"), ("image", "seed-tiny")])
def test_tokenizer_folder_without_a_configuration(own_home: Path, name: str, folder: str) -> None:
    path = own_home / "tokenizers" / folder
    (path / "config.json").unlink()
    model = AnyGPT.from_pretrained(**{f"{name}_tokenizer_path": path})
    with pytest.raises(CheckpointError, match="-tiny: a folder without a tokenizer's config.json"):
        model.tokenizers.get(name)


def test_missing_tokenizer_folder_is_named(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(own_home / "tokenizers/music-tiny")
    with pytest.raises(AnyGPTError, match="music-tiny not found"):
        AnyGPT.from_pretrained().run("text|music|calm")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.model", "added_tokens.json"])
def test_missing_model_file_is_named(own_home: Path, name: str) -> None:
    (own_home / "models" / MODEL / name).unlink()
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        AnyGPT.from_pretrained()


def test_model_and_vocabulary_of_different_checkpoints(own_home: Path) -> None:
    build_llama(own_home / "models" / MODEL, 300)
    with pytest.raises(CheckpointError, match="300 rows of embeddings"):
        AnyGPT.from_pretrained()


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"format": 2}, "'format' is 2"), ({"templat": "x"}, "unknown key 'templat'"), ({"modalities": 3}, "anygpt.json")],
)
def test_bad_manifest(own_home: Path, changes: dict[str, object], message: str) -> None:
    change_manifest(own_home, **changes)
    with pytest.raises(AnyGPTError, match=message):
        AnyGPT.from_pretrained()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "no-such-model"}, "no-such-model: no such model folder"),
        ({"model": __file__}, "is a file, expected the folder"),
        ({"device": "cuda:99"}, "device 'cuda:99' is not available"),
        ({"device": "nonsense"}, "device 'nonsense' is not available"),
        ({"dtype": "float23"}, "unknown dtype 'float23'.*'float32'"),
        ({"speech_tokenizer_config": "x.json"}, "no speech tokenizer is given"),
        ({"unclip_path": "x"}, "no image tokenizer is given"),
        ({"config_dir": "/no/such/dir"}, "text_generate_config.json: no such configuration file"),
    ],
)
def test_bad_arguments(arguments: dict[str, str], message: str) -> None:
    with pytest.raises(AnyGPTError, match=message):
        AnyGPT.from_pretrained(**arguments)  # type: ignore[arg-type]


def test_unknown_config_key(own_home: Path) -> None:
    (own_home / "config/music_generate_config.json").write_text('{"top_pp": 1}')
    with pytest.raises(ConfigError, match="music_generate_config.json: unknown key 'top_pp'.*'top_p'"):
        AnyGPT.from_pretrained()


def test_importing_the_package_loads_no_torch() -> None:
    code = "import sys, anygpt, anygpt.cli.main; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


PROMPTS = [
    "text|image|a red apple",
    "image|text|{picture}",
    "text|music|calm",
    "text|speech|hello",
    "speech|text|{sound}",
]


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_a_batch_answers_as_one_by_one(model: AnyGPT, picture: Path, sound: Path, batch_size: int) -> None:
    prompts = [prompt.format(picture=picture, sound=sound) for prompt in PROMPTS * 2]
    results = list(model.run_batch(prompts, batch_size=batch_size, seed=11))
    assert [result.prompt for result in results] == prompts and not any(result.error for result in results)
    for number, result in enumerate(results):
        same(result, model.run(prompts[number], seed=11 + number))


def same(result: Result, expected: Result) -> None:
    assert (result.text, result.modality, result.seed) == (expected.text, expected.modality, expected.seed)
    if expected.text is None:
        assert torch.equal(codes(result), codes(expected))
    if expected.audio is not None:
        assert result.audio is not None and np.array_equal(result.audio.wave, expected.audio.wave)


def test_bad_prompts_leave_the_others_alone(model: AnyGPT) -> None:
    prompts = ["nonsense", "text|image|x", "image|text|nowhere.png", "text|music|" + "w " * 400, ("text|image|y", 3)]
    results = list(model.run_batch(prompts, batch_size=2, seed=5))
    errors = [str(result.error or "").split(":")[0].split(";")[0] for result in results]
    assert [bool(error) for error in errors] == [True, False, True, True, False]
    assert "unknown form" in errors[0] and "nowhere.png" in errors[2] and "ids long" in errors[3]
    same(results[1], model.run("text|image|x", seed=6))
    same(results[4], model.run("text|image|y", seed=3))
    with pytest.raises(AnyGPTError, match="batch_size is 0"):
        model.run_batch([], batch_size=0)


def test_several_answers_of_one_prompt(model: AnyGPT, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = model.run("text|image|a red apple", n=3, seed=20)
    for number, answer in enumerate(answers):
        same(answer, model.run("text|image|a red apple", seed=20 + number))
    with monkeypatch.context() as patch:
        patch.setattr(engine, "MOST_TOGETHER", 2)
        for answer, expected in zip(model.run("text|image|a red apple", n=3, seed=20), answers, strict=True):
            same(answer, expected)
    with pytest.raises(AnyGPTError, match="unknown form"):
        model.run("nonsense", n=2)
    with pytest.raises(AnyGPTError, match="n is 0"):
        model.run("text|image|x", n=0)


def test_guidance(model: AnyGPT) -> None:
    prompt = "text|image|a red apple"
    plain = model.run(prompt, seed=1)
    same(model.run(prompt, seed=1, guidance_scale=1.0), plain)
    guided = model.run(prompt, seed=1, guidance_scale=5.0)
    assert not torch.equal(codes(guided), codes(plain))
    same(next(model.run_batch([(prompt, 1), ("text|image|y", 1)], guidance_scale=5.0)), guided)
    with pytest.raises(AnyGPTError, match="'guidance_scale' is -1"):
        model.run(prompt, guidance_scale=-1)
