"""What a command loads: nothing that its prompt doesn't need."""

import subprocess
import sys
from pathlib import Path

import pytest
from fixtures_cli import environment

TIME_LIMIT_S = 120
NEVER = {
    *("transformers", "tokenizers", "peft", "accelerate", "datasets", "ray", "scipy", "matplotlib", "pandas"),
    *("gradio", "fastapi", "uvicorn", "prompt_toolkit", "torch._dynamo", "torch._inductor", "torch.utils.tensorboard"),
    *("anygpt.training", "anygpt.evaluation", "anygpt.serving", "anygpt.web", "anygpt.synth", "anygpt.world"),
}
TOKENIZERS = {"image": "seed", "speech": "speechtokenizer", "music": "encodec"}
SOUND = {"soundfile", "soxr"}


def loaded_by(prompt: str, home: Path, out: Path) -> set[str]:
    """Modules in the process that `anygpt base --prompt PROMPT` was, at its end."""
    code = (
        "import atexit, sys; from pathlib import Path; from anygpt.cli.main import main; "
        "atexit.register(lambda: Path(sys.argv.pop()).write_text('\\n'.join(sys.modules))); main(sys.argv[1:-1])"
    )
    listing = out / "modules.txt"
    words = ["base", "--prompt", prompt, "--output-dir", str(out), str(listing)]
    subprocess.run(
        [sys.executable, "-c", code, *words],
        env=environment(ANYGPT_HOME=str(home)),
        cwd=out,
        check=True,
        timeout=TIME_LIMIT_S,
        capture_output=True,
    )
    return set(listing.read_text().split())


@pytest.mark.parametrize("target", TOKENIZERS)
def test_a_prompt_loads_only_what_it_needs(target: str, tiny_home: Path, tmp_path: Path) -> None:
    loaded = loaded_by(f"text|{target}|a red apple", tiny_home, tmp_path)
    assert f"anygpt.tokenizers.{TOKENIZERS[target]}" in loaded
    assert loaded & NEVER == set()
    others = {f"anygpt.tokenizers.{name}" for kind, name in TOKENIZERS.items() if kind != target}
    assert loaded & others == set()
    if target == "image":
        assert loaded & SOUND == set()
    else:
        assert "soxr" not in loaded  # nothing is resampled
