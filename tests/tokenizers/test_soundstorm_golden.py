"""SoundStorm against the vectors recorded from the released implementation."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from anygpt.tokenizers.soundstorm import SoundStorm, SoundStormConfig, load_soundstorm
from anygpt.tokenizers.soundstorm import sampling as soundstorm_sampling
from anygpt.tokenizers.soundstorm.conformer import rotary_angles
from anygpt.tokenizers.soundstorm.loss import Masking, hide, masked_loss


@pytest.fixture(scope="module")
def folder(golden_dir: Path) -> Path:
    return golden_dir / "soundstorm"


@pytest.fixture(scope="module")
def vectors(folder: Path) -> dict[str, Tensor]:
    with np.load(folder / "tiny_io.npz") as archive:
        return {name: torch.from_numpy(archive[name]) for name in archive.files}


@pytest.fixture(scope="module")
def model(folder: Path) -> SoundStorm:
    return load_soundstorm(folder / "tiny_weights.safetensors", SoundStormConfig.load(folder / "tiny_config.json"))


@pytest.fixture(scope="module")
def cases(folder: Path) -> dict[str, dict[str, Any]]:
    return json.loads((folder / "cases.json").read_text(encoding="utf-8"))


def assert_near(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


def test_golden_network_intermediates(model: SoundStorm, vectors: dict[str, Tensor]) -> None:
    codes, semantic = vectors["net_codes"], vectors["net_semantic"]
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda module, args, output: seen.__setitem__(name, output)

    blocks = model.net.conformer.layers
    parts = {"ff1": blocks[0].ff1, "attn": blocks[0].attn, "conv": blocks[0].conv, "ff2": blocks[0].ff2}
    named = {f"net_block0_{name}_branch": part for name, part in parts.items()}
    named |= {f"net_block{i}_out": block for i, block in enumerate(blocks)}
    hooks = [part.register_forward_hook(keep(name)) for name, part in named.items()]
    with torch.no_grad():
        cond, summed = model.condition(semantic), model.net.embed(codes)
        hidden = model.net.hidden(codes, cond)
        heads = model.net.head_embeddings(hidden).flatten(1, 2)
    for hook in hooks:
        hook.remove()
    seen |= {
        "net_cond": cond,
        "net_code_embedding_sum": summed,
        "net_conformer_in": summed + cond,
        "net_conformer_out": hidden,
        "net_head_embeddings": heads,
    }
    compared = [name for name in seen if name in vectors]
    assert len(compared) >= 9
    for name in compared:
        assert_near(seen[name], vectors[name])


def test_golden_network_logits_with_and_without_padding(model: SoundStorm, vectors: dict[str, Tensor]) -> None:
    codes, semantic, padded = vectors["net_codes"], vectors["net_semantic"], vectors["net_padded_seq_mask"]
    with torch.no_grad():
        assert_near(model(codes, semantic).flatten(1, 2), vectors["net_logits_nomask_arg"])
        assert_near(model(codes, semantic, torch.ones_like(padded)).flatten(1, 2), vectors["net_logits"])
        assert_near(model(codes, semantic, padded).flatten(1, 2), vectors["net_logits_padded"])


def test_golden_rotary_angles(model: SoundStorm, vectors: dict[str, Tensor]) -> None:
    recorded = [tensor for name, tensor in vectors.items() if name.startswith("rotary_freqs")]
    assert recorded
    for expected in recorded:
        assert_near(rotary_angles(expected.shape[0], model.config.dim_head), expected)


class Recorder:
    """Stands in front of the network: passes on what sampling asks for and keeps all inputs and all logits."""

    def __init__(self, model: SoundStorm, monkeypatch: pytest.MonkeyPatch) -> None:
        self.inputs: list[Tensor] = []
        self.logits: list[Tensor] = []
        self._forward = model.net.forward
        monkeypatch.setattr(model.net, "forward", self)

    def __call__(self, codes: Tensor, cond: Tensor, mask: Tensor | None = None, levels: slice = slice(None)) -> Tensor:
        logits = self._forward(codes, cond, mask)
        self.inputs.append(codes.flatten(1).clone())
        self.logits.append(logits.flatten(1, 2))
        return logits[:, :, levels]


def generate_case(
    model: SoundStorm, case: dict[str, Any], vectors: dict[str, Tensor], uniform: soundstorm_sampling.UniformSource
) -> Tensor:
    arguments = dict(case["args"])
    semantic = vectors[case["semantic_tokens"]]
    empty = semantic.new_empty(semantic.shape[0], 0, 1 + model.config.num_quantizers)
    prompt = vectors[case["prompt_tokens"]] if case["prompt_tokens"] else empty
    is_cat = arguments.pop("is_cat_semantic_token")
    with torch.no_grad():
        codes = soundstorm_sampling.generate_released(model, semantic, prompt, uniform=uniform, **arguments)
    return torch.cat([semantic.unsqueeze(-1), codes], dim=-1) if is_cat else codes


def test_golden_generation_calls(
    model: SoundStorm,
    cases: dict[str, dict[str, Any]],
    vectors: dict[str, Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, case in cases.items():
        with monkeypatch.context() as patch:
            recorder = Recorder(model, patch)
            torch.manual_seed(case["torch_manual_seed"])
            output = generate_case(model, case, vectors, soundstorm_sampling.uniform_source(None, torch.device("cpu")))
        assert torch.equal(output, vectors[f"{name}/output"]), name
        assert len(recorder.inputs) == case["n_net_calls"], name
        assert torch.equal(torch.stack(recorder.inputs), vectors[f"{name}/net_inputs"].long()), name
        argmax = torch.stack([logits.argmax(dim=-1) for logits in recorder.logits])
        assert torch.equal(argmax, vectors[f"{name}/argmax_logits"].long()), name
        assert_near(recorder.logits[0], vectors[f"{name}/first_call_logits"])


def replayed_noise(name: str, case: dict[str, Any], vectors: dict[str, Tensor], codebook_size: int) -> Tensor:
    """The draws of a case, [draws, batch, positions, codebook_size], from its seed.

    One tensor for each call that samples: all calls when sampling is on everywhere; otherwise `steps` for each level
    that is sampled in full, since the calls after them take the argmax.
    """
    arguments = case["args"]
    draws = arguments["steps"] * arguments["num_full_sampling_levels"] if arguments["greedy"] else case["n_net_calls"]
    shape = (*vectors[f"{name}/net_inputs"].shape[1:], codebook_size)
    torch.manual_seed(case["torch_manual_seed"])
    return torch.stack([torch.rand(shape) for _ in range(draws)])


def test_golden_generation_with_recorded_noise(
    model: SoundStorm, cases: dict[str, dict[str, Any]], vectors: dict[str, Tensor]
) -> None:
    """The copy in the repository has one case's noise; the rule that it confirms gives the others'."""
    recorded = 0
    for name, case in cases.items():
        noise = replayed_noise(name, case, vectors, model.config.codebook_size)
        if f"{name}/uniform_noise" in vectors:
            assert torch.equal(vectors[f"{name}/uniform_noise"], noise), name
            recorded += 1
        draws = iter(noise)

        def feed(shape: tuple[int, int, int], draws: Iterator[Tensor] = draws) -> Tensor:
            drawn = next(draws)
            assert tuple(drawn.shape) == shape
            return drawn

        assert torch.equal(generate_case(model, case, vectors, feed), vectors[f"{name}/output"]), name
        assert next(draws, None) is None, name
    assert recorded


def test_golden_public_generate(
    model: SoundStorm, cases: dict[str, dict[str, Any]], vectors: dict[str, Tensor]
) -> None:
    checked = 0
    for name, case in cases.items():
        arguments = dict(case["args"])
        if arguments.pop("num_full_sampling_levels") != 1 or arguments.pop("topk_pres") != 0.7:
            continue  # not reachable from the released command lines
        output = model.generate(
            vectors[case["semantic_tokens"]],
            prompt_BP8=vectors[case["prompt_tokens"]] if case["prompt_tokens"] else None,
            generator=torch.Generator().manual_seed(case["torch_manual_seed"]),
            **arguments,
        )
        assert torch.equal(output, vectors[f"{name}/output"]), name
        checked += 1
    assert checked


def training_cases(vectors: dict[str, Tensor]) -> list[str]:
    names = sorted({name.split("/")[0] for name in vectors if name.endswith("/loss_mask")})
    assert names
    return names


def test_golden_training_loss(model: SoundStorm, vectors: dict[str, Tensor]) -> None:
    codes, semantic = vectors["train_codes"], vectors["train_semantic"]
    for name in training_cases(vectors):
        level, loss_mask = int(vectors[f"{name}/level"]), vectors[f"{name}/loss_mask"]
        masking = Masking(
            input_BLQ=vectors[f"{name}/net_input"].view_as(codes),
            level_B=torch.full((codes.shape[0],), level),
            loss_mask_BL=loss_mask[..., level],
        )
        assert int(masking.loss_mask_BL.sum()) == int(vectors[f"{name}/n_loss_positions"]) == int(loss_mask.sum())
        with torch.no_grad():
            loss, _ = masked_loss(model, codes, semantic, masking)
        assert_near(loss, vectors[f"{name}/loss"])


def test_golden_training_input_follows_our_masking_rule(model: SoundStorm, vectors: dict[str, Tensor]) -> None:
    codes = vectors["train_codes"]
    for name in training_cases(vectors):
        level, prompt = int(vectors[f"{name}/level"]), int(vectors[f"{name}/prompt_len"])
        candidate = (torch.arange(codes.shape[1]) >= prompt).expand(codes.shape[:2])
        level_B = torch.full((codes.shape[0],), level)
        hidden = hide(codes, level_B, vectors[f"{name}/loss_mask"][..., level], candidate, model.config.mask_id)
        assert torch.equal(vectors[f"{name}/net_input"].view_as(codes), hidden), name


def full_manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "full_state_dict.json").read_text(encoding="utf-8"))


def test_golden_full_size_manifest(folder: Path) -> None:
    manifest = full_manifest(folder)
    with torch.device("meta"):
        full = SoundStorm(SoundStormConfig.load(folder / "full_config.json"))
    got = {name: [list(t.shape), str(t.dtype).removeprefix("torch.")] for name, t in full.state_dict().items()}
    assert got == manifest["keys"]
    assert sum(t.numel() for t in full.state_dict().values()) == manifest["n_elements"]
    assert SoundStormConfig.load(folder / "full_config.json") == SoundStormConfig()


def test_golden_released_file_in_both_key_layouts(folder: Path, model: SoundStorm, tmp_path: Path) -> None:
    config = SoundStormConfig.load(folder / "tiny_config.json")
    old_names = {"net1.0": "net.0", "net1.2": "net.2", "ds_conv": "net.4", "net2.1": "net.6", "net2.2": "net.7"}
    older = {
        re.sub(r"\.conv\.(net1\.[02]|ds_conv|net2\.[12])\.", lambda m: f".conv.{old_names[m[1]]}.", name): tensor
        for name, tensor in model.state_dict().items()
    }
    assert older.keys() != model.state_dict().keys()
    for layout, state in (("new", model.state_dict()), ("old", older), ("trainer", {"model": older, "optim": {}})):
        torch.save(state, tmp_path / f"{layout}.pt")
        loaded = load_soundstorm(tmp_path / f"{layout}.pt", config)
        for name, tensor in model.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], tensor), (layout, name)
