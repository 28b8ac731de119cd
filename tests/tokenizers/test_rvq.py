"""Residual vector quantizer: exactness of codes, and what training does to the codebooks."""

import pytest
import torch
from torch import Tensor

from anygpt.errors import CodeError
from anygpt.tokenizers.rvq import ResidualVectorQuantizer

DIMENSION, SIZE, LEVELS = 6, 16, 3


def make(seed: int = 0, **options: float) -> ResidualVectorQuantizer:
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    return ResidualVectorQuantizer(DIMENSION, SIZE, LEVELS, generator=generator, **options)


def latents(batch: int = 4, frames: int = 40, seed: int = 1) -> Tensor:
    return torch.randn(batch, DIMENSION, frames, generator=torch.Generator().manual_seed(seed))


def state(quantizer: ResidualVectorQuantizer) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in quantizer.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_state_has_the_released_names() -> None:
    level = ["inited", "cluster_size", "embed", "embed_avg"]
    assert list(make().state_dict()) == [f"vq.layers.{i}._codebook.{name}" for i in range(LEVELS) for name in level]


def test_codes_are_those_of_a_plain_search() -> None:
    quantizer, x_BCT = make().eval(), latents()
    codes_KBT = quantizer.encode(x_BCT)
    assert codes_KBT.shape == (LEVELS, 4, 40) and codes_KBT.dtype == torch.int64
    residual_BTC = x_BCT.transpose(1, 2).double()
    for codes_BT, codebook in zip(codes_KBT, quantizer.codebooks, strict=True):
        entries = codebook.embed.double()
        distances = (residual_BTC[:, :, None] - entries).square().sum(-1)
        assert torch.equal(codes_BT, distances.argmin(-1))
        residual_BTC = residual_BTC - entries[codes_BT]


def test_levels_are_selected_by_first_and_end() -> None:
    quantizer, x_BCT = make().eval(), latents()
    codes = quantizer.encode(x_BCT)
    assert torch.equal(quantizer.encode(x_BCT, n_q=2), codes[:2])
    tail = quantizer.encode(x_BCT, n_q=2, st=1)
    assert tail.shape[0] == 1
    # Level `st` sees the vectors themselves, not a residual.
    alone = quantizer.codebooks[1].nearest(x_BCT.transpose(1, 2).reshape(-1, DIMENSION)).view(4, 40)
    assert torch.equal(tail[0], alone)
    both = quantizer.decode(codes[:1]) + quantizer.decode(codes[1:], st=1)
    assert torch.allclose(quantizer.decode(codes), both, atol=1e-6)


@pytest.mark.parametrize(("n_q", "st"), [(0, 0), (1, 1), (LEVELS + 1, 0), (2, -1)])
def test_no_level_left_is_an_error(n_q: int, st: int) -> None:
    with pytest.raises(CodeError, match="n_q"):
        make().encode(latents(), n_q=n_q, st=st)


def test_more_levels_than_there_are_is_an_error() -> None:
    codes = torch.zeros(LEVELS, 1, 2, dtype=torch.long)
    with pytest.raises(CodeError, match="has 3"):
        make().decode(codes, st=1)
    with pytest.raises(CodeError, match="has 3"):
        make()(latents(), n_q=2, layers=[2])


def test_eval_forward_agrees_with_encode_and_changes_nothing() -> None:
    quantizer, x_BCT = make().eval(), latents()
    before = state(quantizer)
    quantized, codes, loss, per_level = quantizer(x_BCT)
    assert torch.equal(codes, quantizer.encode(x_BCT))
    assert torch.equal(quantized, quantizer.decode(codes))
    assert torch.equal(sum(per_level), quantized) and len(per_level) == LEVELS
    assert loss.item() == 0
    assert same(before, state(quantizer))
    quantizer.train().encode(x_BCT)
    assert same(before, state(quantizer)), "encode must not learn, whatever the mode"


def test_forward_may_start_at_a_later_level() -> None:
    quantizer, x_BCT = make().eval(), latents()
    quantized, codes, _, per_level = quantizer(x_BCT, st=1, layers=[2])
    assert torch.equal(codes, quantizer.encode(x_BCT, st=1))
    assert torch.equal(quantized, quantizer.decode(codes, st=1))
    assert torch.equal(per_level[0], quantizer.decode(codes[1:], st=2))


def test_first_batch_places_the_entries_by_k_means() -> None:
    quantizer = make().train()
    centres = torch.randn(SIZE, DIMENSION, generator=torch.Generator().manual_seed(3)) * 10
    noise = torch.randn(SIZE, 50, DIMENSION, generator=torch.Generator().manual_seed(4)) * 0.01
    x_BCT = (centres[:, None] + noise).transpose(1, 2)
    quantizer(x_BCT)
    quantizer.eval()
    error = (quantizer(x_BCT)[0] - x_BCT).square().mean()
    assert error < 0.01 * x_BCT.var()
    assert all(codebook.inited.item() == 1 for codebook in quantizer.codebooks)


def test_fewer_vectors_than_entries_is_no_problem() -> None:
    quantizer = make().train()
    quantized = quantizer(latents(batch=1, frames=3))[0]
    assert torch.isfinite(quantized).all()


def test_training_lowers_the_error_on_other_vectors() -> None:
    quantizer = make().train()
    held_out = latents(seed=99)
    quantizer(latents(seed=0))
    start = (quantizer.eval()(held_out)[0] - held_out).square().mean()
    quantizer.train()
    for step in range(300):
        quantizer(latents(seed=step))
    end = (quantizer.eval()(held_out)[0] - held_out).square().mean()
    assert end < 0.95 * start


def test_moving_average_follows_its_formula() -> None:
    quantizer = make(decay=0.9, restart_below=0.0, kmeans_iterations=0).train()
    x_BCT = latents()
    quantizer(x_BCT)
    codebook = quantizer.codebooks[0]
    before = {name: tensor.clone() for name, tensor in codebook.state_dict().items()}
    rows_NC = x_BCT.transpose(1, 2).reshape(-1, DIMENSION)
    codes_N = codebook.nearest(rows_NC)
    quantizer(x_BCT)
    chosen = torch.nn.functional.one_hot(codes_N, SIZE).float()
    counts = 0.9 * before["cluster_size"] + 0.1 * chosen.sum(0)
    sums = 0.9 * before["embed_avg"] + 0.1 * chosen.t() @ rows_NC
    assert torch.allclose(codebook.cluster_size, counts, atol=1e-5)
    assert torch.allclose(codebook.embed_avg, sums, atol=1e-5)
    assert torch.allclose(codebook.embed, sums / counts[:, None], atol=1e-3)


def test_unused_entry_is_restarted_from_the_batch() -> None:
    quantizer = make().train()
    x_BCT = latents()
    quantizer(x_BCT)
    codebook = quantizer.codebooks[0]
    codebook.embed[5] = 1e3
    codebook.embed_avg[5] = 0
    codebook.cluster_size[5] = 0
    quantizer(x_BCT)
    rows_NC = x_BCT.transpose(1, 2).reshape(-1, DIMENSION)
    assert (rows_NC - codebook.embed[5]).square().sum(1).min() < 1e-6
    used = codebook.nearest(rows_NC)
    assert (used == 5).any()


def test_equal_seeds_give_equal_training() -> None:
    def run() -> dict[str, Tensor]:
        quantizer = make(quantizer_dropout=0.5, restart_below=0.5).train()
        for step in range(5):
            quantizer(latents(seed=step))
        return state(quantizer)

    assert same(run(), run())


@pytest.mark.parametrize("training", [True, False])
def test_gradient_passes_straight_through_once(training: bool) -> None:
    quantizer = make().train(training)
    x_BCT = latents().requires_grad_()
    weights = torch.randn(x_BCT.shape, generator=torch.Generator().manual_seed(5))
    quantized, _, _, per_level = quantizer(x_BCT)
    (gradient,) = torch.autograd.grad((quantized * weights).sum(), x_BCT, retain_graph=True)
    assert torch.equal(gradient, weights)
    (gradient,) = torch.autograd.grad((per_level[0] * weights).sum(), x_BCT)
    assert torch.equal(gradient, weights)


def test_commitment_loss_pulls_the_vectors_to_their_entries() -> None:
    quantizer = make().train()
    x_BCT = latents().requires_grad_()
    quantized, _, loss, _ = quantizer(x_BCT, n_q=1)
    (gradient,) = torch.autograd.grad(loss, x_BCT)
    assert loss.item() == pytest.approx((quantized - x_BCT).square().mean().item(), rel=1e-4)
    assert torch.allclose(gradient, 2 * (x_BCT - quantized) / x_BCT.numel(), atol=1e-7)


def test_quantizer_dropout_rebuilds_from_a_prefix_of_levels() -> None:
    quantizer = make(quantizer_dropout=1.0).train()
    quantizer(latents())
    x_BCT = latents(batch=32, frames=3)
    quantized, codes, _, per_level = quantizer(x_BCT)
    assert codes.shape[0] == LEVELS
    prefixes = torch.stack(per_level).cumsum(0)
    matches = (prefixes - quantized).flatten(2).abs().amax(-1) < 1e-5
    assert matches.any(0).all(), "every item is some prefix"
    assert matches.any(1).all(), "every prefix length occurs"


def test_autocast_does_not_change_codes() -> None:
    quantizer, x_BCT = make().eval(), latents(frames=500)
    expected = quantizer.encode(x_BCT)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(quantizer.encode(x_BCT), expected)
        quantized = quantizer(x_BCT)[0]
    assert quantized.dtype == torch.float32
    assert torch.equal(quantized, quantizer.decode(expected))
    assert quantizer(x_BCT.bfloat16())[0].dtype == torch.bfloat16
