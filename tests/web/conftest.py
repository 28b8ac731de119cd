"""The tiny model with answers that are soon done, and files to attach."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures_serving import picture_file, sound_file

from anygpt import AnyGPT


@pytest.fixture(scope="module")  # not longer: the variable is for these tests alone
def web_model(tiny_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AnyGPT]:
    config = tmp_path_factory.mktemp("web") / "config"
    shutil.copytree(tiny_home / "config", config)
    for name, settings in (
        ("", {"max_new_tokens": 8}),
        ("speech_", {"max_new_tokens": 20, "min_new_tokens": 10, "vc_steps": 1}),
    ):
        (config / f"{name}generate_config.json").write_text(json.dumps(settings))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANYGPT_HOME", str(tiny_home))
        yield AnyGPT.from_pretrained(config_dir=config)


@pytest.fixture(scope="session")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("files") / "photo.png"
    path.write_bytes(picture_file())
    return path


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("files") / "voice.wav"
    path.write_bytes(sound_file())
    return path
