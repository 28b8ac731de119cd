"""SoundStorm's own rules: configuration, masking, loss, the paper's sampler, files and bad input."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from anygpt.errors import AnyGPTError, CheckpointError, CodeError, ConfigError
from anygpt.tokenizers.soundstorm import SoundStorm, SoundStormConfig, load_soundstorm, save_soundstorm
from anygpt.tokenizers.soundstorm.conformer import ChannelNorm, DepthwiseConv, attend
from anygpt.tokenizers.soundstorm.loss import Masking, draw_masking, masked_loss
from anygpt.tokenizers.soundstorm.sampling import keep_top, mask_counts

TINY = SoundStormConfig(
    dim=24,
    depth=2,
    heads=2,
    dim_head=12,
    conv_kernel_size=5,
    codebook_size=11,
    num_quantizers=3,
    num_semantic_token_ids=13,
    semantic_pad_id=13,
    pad_id=11,
)


def tiny_model(**changes: object) -> SoundStorm:
    torch.manual_seed(0)
    return SoundStorm(SoundStormConfig.from_mapping({**TINY.to_mapping(), **changes}, "test")).eval()


def random_codes(batch: int, frames: int, config: SoundStormConfig = TINY, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(config.codebook_size, (batch, frames, config.num_quantizers), generator=generator)
    return codes, torch.randint(config.num_semantic_token_ids, (batch, frames), generator=generator)


def test_depthwise_convolution_equals_the_plain_one() -> None:
    for kernel_size in (1, 5, 31):
        conv = DepthwiseConv(6, kernel_size)
        x = torch.randn(2, 17, 6)
        torch.testing.assert_close(conv(x), conv.conv(x.transpose(1, 2)).transpose(1, 2), atol=1e-5, rtol=1e-5)


def test_training_attention_equals_the_fused_one() -> None:
    q, k, v = torch.randn(3, 2, 4, 9, 6).unbind()
    bias = torch.zeros(2, 1, 1, 9)
    bias[1, ..., 5:] = torch.finfo(torch.float32).min
    for mask in (None, bias):
        with torch.no_grad():
            fused = attend(q, k, v, mask)
        torch.testing.assert_close(attend(q, k, v, mask), fused, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("dtype", "floor"), [(torch.float32, 1e-6), (torch.float64, 1e-4)])
def test_channel_norm_clamps_the_variance(dtype: torch.dtype, floor: float) -> None:
    x = (torch.randn(1, 3, 8) * 1e-5).to(dtype)
    expected = (x - x.mean(-1, keepdim=True)) / floor**0.5
    torch.testing.assert_close(ChannelNorm(8)(x), expected, atol=1e-7, rtol=1e-4)


def test_logits_of_some_levels_equal_those_of_all() -> None:
    model = tiny_model()
    codes, semantic = random_codes(2, 9)
    cond = model.condition(semantic)
    everything = model.net(codes, cond)
    for levels in (slice(0, 1), slice(1, None), slice(2, 3)):
        torch.testing.assert_close(model.net(codes, cond, None, levels), everything[:, :, levels])


def test_padding_of_one_item_does_not_change_another_nor_its_own_frames() -> None:
    model = tiny_model()
    codes, semantic = random_codes(1, 6)
    alone = model(codes, semantic, torch.ones(1, 6, dtype=torch.bool))
    padded_codes = F.pad(codes, (0, 0, 0, 4), value=TINY.pad_id)
    padded_semantic = F.pad(semantic, (0, 4), value=TINY.semantic_pad_id)
    mask = torch.arange(10)[None] < 6
    torch.testing.assert_close(model(padded_codes, padded_semantic, mask)[:, :6], alone, atol=1e-5, rtol=1e-5)


def test_mask_counts_begin_with_all_and_end_with_none() -> None:
    for steps in (1, 2, 3, 8, 16):
        counts = mask_counts(steps, 100)
        assert counts[0] == 100 and counts[-1] == 0 and len(counts) == steps + 1
        assert counts == sorted(counts, reverse=True)


def test_keep_top_follows_the_floating_point_of_the_released_share() -> None:
    assert int(keep_top(torch.randn(1, 1024), 0.7).isfinite().sum()) == 308


@pytest.mark.parametrize("released", [False, True])
def test_masking_hides_one_level_partly_and_the_levels_above_wholly(released: bool) -> None:
    codes, _ = random_codes(6, 20)
    generator = torch.Generator().manual_seed(5)
    for _ in range(20):
        prompt = torch.randint(0, 19, (6,), generator=generator)
        masking = draw_masking(codes, TINY, generator=generator, prompt_B=prompt, released=released)
        for item in range(6):
            start, level = int(prompt[item]), int(masking.level_B[item])
            hidden = masking.input_BLQ[item] == TINY.mask_id
            assert not hidden[:start].any() and not hidden[:, :level].any()
            assert hidden[start:, level + 1 :].all()
            assert torch.equal(hidden[:, level], masking.loss_mask_BL[item])
            assert torch.equal(masking.input_BLQ[item][~hidden], codes[item][~hidden])
        if released:
            assert masking.level_B.unique().numel() == 1
        else:
            assert masking.loss_mask_BL.any(dim=1).all()


def test_masking_never_asks_for_padding() -> None:
    codes, _ = random_codes(4, 12)
    mask = torch.arange(12)[None] < torch.tensor([12, 5, 3, 1])[:, None]
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        masking = draw_masking(
            codes, TINY, generator=generator, prompt_B=torch.zeros(4, dtype=torch.long), mask_BL=mask
        )
        assert not (masking.loss_mask_BL & ~mask).any() and masking.loss_mask_BL.any(dim=1).all()


def test_masked_loss_equals_cross_entropy_over_all_logits() -> None:
    model = tiny_model()
    codes, semantic = random_codes(5, 14)
    masking = draw_masking(codes, TINY, generator=torch.Generator().manual_seed(2))
    loss, accuracy = masked_loss(model, codes, semantic, masking)
    logits = model(masking.input_BLQ, semantic)
    rows, targets = [], []
    for item, frame in masking.loss_mask_BL.nonzero().tolist():
        level = int(masking.level_B[item])
        rows.append(logits[item, frame, level])
        targets.append(codes[item, frame, level])
    expected = F.cross_entropy(torch.stack(rows), torch.stack(targets))
    torch.testing.assert_close(loss, expected)
    right = (torch.stack(rows).argmax(-1) == torch.stack(targets)).float().mean()
    torch.testing.assert_close(accuracy, right)


def test_loss_of_a_batch_without_positions_is_zero_and_has_a_gradient() -> None:
    """The published masking can leave a whole batch without positions; its mean is then NaN."""
    model = tiny_model()
    codes, semantic = random_codes(2, 6)
    masking = Masking(
        input_BLQ=codes, level_B=torch.zeros(2, dtype=torch.long), loss_mask_BL=torch.zeros(2, 6, dtype=torch.bool)
    )
    loss, accuracy = masked_loss(model, codes, semantic, masking)
    loss.backward()
    assert float(loss.detach()) == 0 and float(accuracy) == 0


@pytest.mark.parametrize("sampling", ["released", "paper"])
@pytest.mark.parametrize("prompt_frames", [0, 4])
@pytest.mark.parametrize("greedy", [True, False])
def test_generate_gives_valid_codes_and_is_seeded(sampling: str, prompt_frames: int, greedy: bool) -> None:
    model = tiny_model(sampling=sampling)
    _, semantic = random_codes(2, 9)
    codes, prompt_semantic = random_codes(2, prompt_frames, seed=3)
    prompt = torch.cat([prompt_semantic[..., None], codes], dim=-1) if prompt_frames else None

    def run() -> Tensor:
        generator = torch.Generator().manual_seed(7)
        return model.generate(semantic, prompt_BP8=prompt, steps=3, greedy=greedy, generator=generator)

    output = run()
    assert output.shape == (2, 9, 4) and output.dtype == torch.int64
    assert torch.equal(output[..., 0], semantic)
    assert int(output[..., 1:].min()) >= 0 and int(output[..., 1:].max()) < TINY.codebook_size
    assert torch.equal(output, run())
    plain = model.generate(
        semantic,
        prompt_BP8=prompt,
        steps=3,
        greedy=greedy,
        generator=torch.Generator().manual_seed(7),
        is_cat_semantic_token=False,
    )
    assert torch.equal(plain, output[..., 1:])


def test_paper_sampler_shows_the_network_what_training_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompt intact, known levels below, masks above; the released sampler does neither."""
    model = tiny_model(sampling="paper")
    _, semantic = random_codes(1, 8)
    codes, prompt_semantic = random_codes(1, 5, seed=3)
    prompt = torch.cat([prompt_semantic[..., None], codes], dim=-1)
    inputs: list[Tensor] = []
    hidden = model.net.hidden
    monkeypatch.setattr(
        model.net, "hidden", lambda codes, *rest: (inputs.append(codes.clone()), hidden(codes, *rest))[1]
    )
    output = model.generate(semantic, prompt_BP8=prompt, steps=4, is_cat_semantic_token=False)
    assert len(inputs) == 4 + 2
    for call, seen in enumerate(inputs):
        level = max(0, call - 3)
        masked = seen[:, 5:] == TINY.mask_id
        assert torch.equal(seen[:, :5], codes)
        assert masked[..., level + 1 :].all() and not masked[..., :level].any()
        assert torch.equal(seen[:, 5:, :level], output[..., :level])
        known = ~masked[..., level]
        assert torch.equal(seen[:, 5:, level][known], output[..., level][known])
    assert [int((seen[:, 5:, 0] == TINY.mask_id).sum()) for seen in inputs[:4]] == [8, *mask_counts(4, 8)[1:-1]]


@pytest.mark.parametrize(
    ("semantic", "prompt", "steps", "words"),
    [
        (torch.tensor([[0, 13]]), None, 1, "semantic tokens"),
        (torch.tensor([[-1]]), None, 1, "semantic tokens"),
        (torch.zeros(1, 0, dtype=torch.long), None, 1, "semantic tokens"),
        (torch.zeros(3, dtype=torch.long), None, 1, "semantic tokens"),
        (torch.zeros(1, 2, dtype=torch.long), None, 0, "steps"),
        (torch.zeros(1, 2, dtype=torch.long), torch.zeros(1, 4, 3, dtype=torch.long), 1, "voice prompt"),
        (torch.zeros(1, 2, dtype=torch.long), torch.zeros(2, 4, 4, dtype=torch.long), 1, "voice prompt"),
        (torch.zeros(1, 2, dtype=torch.long), torch.full((1, 4, 4), 11), 1, "voice prompt, acoustic"),
    ],
)
def test_generate_refuses_bad_input(semantic: Tensor, prompt: Tensor | None, steps: int, words: str) -> None:
    with pytest.raises(CodeError, match=words):
        tiny_model().generate(semantic, prompt_BP8=prompt, steps=steps)


def test_folder_round_trip_keeps_codes_and_settings(tmp_path: Path) -> None:
    model = tiny_model(sampling="paper", codec_fingerprint="abc")
    save_soundstorm(model, tmp_path / "full")
    loaded = load_soundstorm(tmp_path / "full")
    assert loaded.config == model.config and not loaded.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    save_soundstorm(model, tmp_path / "half", dtype=torch.float16)
    half = load_soundstorm(tmp_path / "half").state_dict()
    assert all(tensor.dtype == torch.float32 for tensor in half.values())
    assert sorted(path.name for path in (tmp_path / "full").iterdir()) == ["config.json", "model.safetensors"]


def test_unusable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(AnyGPTError, match="config.json"):
        load_soundstorm(tmp_path)
    with pytest.raises(CheckpointError, match="gone.pt"):
        load_soundstorm(tmp_path / "gone.pt", TINY)
    (tmp_path / "junk.pt").write_bytes(b"not weights")
    (tmp_path / "junk.safetensors").write_bytes(b"not weights")
    for name in ("junk.pt", "junk.safetensors"):
        with pytest.raises(CheckpointError, match=name):
            load_soundstorm(tmp_path / name, TINY)
    model = tiny_model()
    state = model.state_dict()
    cases = {
        "missing": {name: tensor for name, tensor in state.items() if name != "net.heads.0.bias"},
        "unknown": {**state, "net.surplus": torch.zeros(1)},
        "shape": {**state, "net.heads.0.bias": torch.zeros(1)},
    }
    for name, broken in cases.items():
        torch.save(broken, tmp_path / f"{name}.pt")
        with pytest.raises(CheckpointError, match=f"{name}.*(heads.0.bias|surplus)"):
            load_soundstorm(tmp_path / f"{name}.pt", TINY)


def test_configuration_reads_both_forms_and_refuses_the_rest() -> None:
    nested = SoundStormConfig.from_mapping({"conformer": {"dim": 32, "depth": 2, "attn_flash": False}}, "f.json")
    assert (nested.dim, nested.depth, nested.heads) == (32, 2, 8)
    assert SoundStormConfig.from_mapping(TINY.to_mapping(), "f.json") == TINY
    for wrong in ({"dimm": 32}, {"sampling": "best"}, {"schedule": "cos"}, {"conv_kernel_size": 4}, {"dim_head": 3}):
        with pytest.raises(ConfigError, match=f"f.json.*{next(iter(wrong))}"):
            SoundStormConfig.from_mapping(wrong, "f.json")
