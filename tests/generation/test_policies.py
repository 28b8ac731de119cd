"""Decoding policies: the shipped files, their checks and overrides."""

import json
import shutil
from pathlib import Path

import pytest

from anygpt.errors import ConfigError
from anygpt.generation.policies import Policy, load_policies
from anygpt.modality import MODALITIES
from anygpt.paths import resource

CONFIG = resource("config")


@pytest.mark.parametrize("text", ["text", ""])
def test_shipped_files_load_for_every_modality(text: str) -> None:
    policies = load_policies(CONFIG, MODALITIES.values(), text=text)
    assert set(policies) == {"text", *MODALITIES}


def test_released_settings_load(tmp_path: Path) -> None:
    """The published values, beams aside, are valid settings here."""
    published = {"temperature": 1, "top_p": 1.0, "top_k": 200, "do_sample": True, "max_new_tokens": 1500}
    published |= {"min_new_tokens": 10, "repetition_penalty": 1.15, "vc_steps": 4}
    for name in ("text", *MODALITIES):
        (tmp_path / f"{name}_generate_config.json").write_text(json.dumps(published))
    assert load_policies(tmp_path, MODALITIES.values())["music"].top_k == 200


def test_a_models_own_settings_hold_where_the_file_says_nothing(tmp_path: Path) -> None:
    shutil.copytree(CONFIG, tmp_path, dirs_exist_ok=True)
    (tmp_path / "speech_generate_config.json").write_text('{"best_of": 2}')
    own = {"speech": {"best_of": 4, "guidance_scale": 3.0}}
    policies = load_policies(tmp_path, MODALITIES.values(), defaults=own)
    assert policies["speech"] == Policy(best_of=2, guidance_scale=3.0)
    assert policies["music"] == load_policies(tmp_path, MODALITIES.values())["music"]
    with pytest.raises(ConfigError, match="the model's settings for speech: unknown key 'guidance'"):
        load_policies(tmp_path, MODALITIES.values(), defaults={"speech": {"guidance": 2}})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperatur": 1.0}, "unknown key 'temperatur'.*'temperature'"),
        ({"num_beams": 5}, "'num_beams' is 5, expected 1: beam search"),
        ({"temperature": -1}, "'temperature' is -1"),
        ({"top_p": 0}, "'top_p' is 0"),
        ({"top_k": "many"}, "'top_k' is 'many'"),
        ({"max_new_tokens": 0}, "'max_new_tokens' is 0"),
        ({"max_new_tokens": 5, "min_new_tokens": 6}, "'min_new_tokens' is 6"),
        ({"max_new_tokens": 31}, "at least 32 for image"),
        ({"repetition_penalty": 0}, "'repetition_penalty' is 0"),
        ({"vc_steps": 0}, "'vc_steps' is 0"),
    ],
)
def test_mistakes_name_file_and_key(tmp_path: Path, settings: dict[str, object], message: str) -> None:
    for path in CONFIG.glob("*_generate_config.json"):
        shutil.copy(path, tmp_path)
    path = tmp_path / "image_generate_config.json"
    path.write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match=message) as caught:
        load_policies(tmp_path, MODALITIES.values())
    assert str(path) in str(caught.value)


def test_override() -> None:
    policy = Policy(temperature=0.5, vc_steps=3)
    assert policy.override({"temperature": 0}).is_greedy
    assert policy.override({}) == policy
    with pytest.raises(ConfigError, match="unknown key 'topk'.*'top_k'"):
        policy.override({"topk": 3})
