"""Matrices in the forms that decoders keep them in, against plain float products."""

import weakref
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from anygpt.generation import packed_matrix
from anygpt.generation.matrices import INT8_KERNEL_ROWS, SPLIT_INPUTS, Int8Matrix, outputs, place, times
from anygpt.generation.packed_matrix import PackedMatrix
from anygpt.generation.weight_memory import WeightMemory

CPU = torch.device("cpu")
needs_fbgemm = pytest.mark.skipif(not packed_matrix.is_available(CPU), reason="this torch or CPU has no FBGEMM")
INT8_FORMS = [pytest.param("packed", marks=needs_fbgemm), "plain"]


def random_weights(*sizes: tuple[int, int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(size, generator=generator) / size[1] ** 0.5 for size in sizes]


def random_rows(count: int, inputs: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(count, inputs, generator=torch.Generator().manual_seed(1)).to(dtype)


def relative_error(got: Tensor, expected: Tensor) -> float:
    return ((got.float() - expected.float()).norm() / expected.float().norm()).item()


@pytest.fixture
def int8_form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> type:
    """The form that int8 matrices get: on x86 that of others as well, on request."""
    if request.param == "plain":
        monkeypatch.setattr(packed_matrix, "is_available", lambda device: False)
        return Int8Matrix
    return PackedMatrix


@pytest.mark.parametrize("count", [1, 2, INT8_KERNEL_ROWS + 1, 70])
@pytest.mark.parametrize(
    "inputs", [32, 48, 50, SPLIT_INPUTS, SPLIT_INPUTS + 1, 2 * SPLIT_INPUTS + 2816], ids=lambda width: f"{width}"
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_products_of_float_forms(dtype: torch.dtype, inputs: int, count: int) -> None:
    parts = random_weights((40, inputs), (17, inputs), (1, inputs))
    matrix = place(parts, 58, inputs, dtype=dtype, memory=WeightMemory(CPU))
    rows = random_rows(count, inputs, dtype)
    got = times(rows, matrix)
    assert got.dtype == dtype and got.shape == (count, 58)
    expected = rows.float() @ torch.cat(parts).to(dtype).float().t()
    assert relative_error(got, expected) < (1e-5 if dtype == torch.float32 else 5e-3)


@pytest.mark.parametrize("int8_form", INT8_FORMS, indirect=True)
@pytest.mark.parametrize("count", [1, 2, INT8_KERNEL_ROWS + 1, 70])
@pytest.mark.parametrize("inputs", [32, 50, 4097, 11008])
def test_products_of_int8_forms(int8_form: type, inputs: int, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_matrix, "BLOCK_OUTPUTS", 24)
    parts = random_weights((40, inputs), (17, inputs), (1, inputs))
    matrix = place(parts, 58, inputs, dtype=torch.int8, memory=WeightMemory(CPU))
    assert isinstance(matrix, int8_form) and isinstance(matrix, Int8Matrix | PackedMatrix)
    rows = random_rows(count, inputs, torch.bfloat16)
    rows[0, 3] = 400  # far from the others, as single channels of large models are
    rows[-1] *= 0.01
    expected = rows.float() @ matrix.dequantised().t()
    got = times(rows, matrix)
    assert got.dtype == rows.dtype and got.shape == (count, 58)
    assert max(relative_error(*pair) for pair in zip(got, expected, strict=True)) < 5e-3
    for some in (range(0, 58), range(3, 20), range(24, 48), range(20, 58)):
        part = outputs(outputs(matrix, range(2, 58)), range(some.start, some.stop - 2))
        torch.testing.assert_close(times(rows, part), got[:, some.start + 2 : some.stop], atol=0, rtol=0)


@needs_fbgemm
def test_packed_products_are_those_of_a_row_alone_on_any_number_of_threads() -> None:
    (weights,) = random_weights((300, 512))
    matrix = place([weights], 300, 512, dtype=torch.int8, memory=WeightMemory(CPU))
    rows = random_rows(5, 512, torch.bfloat16)
    rows[2] = 0
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results += [times(rows, matrix), torch.cat([times(row, matrix) for row in rows.split(1)])]
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results) and not results[0][2].any()


@pytest.mark.parametrize("int8_form", INT8_FORMS, indirect=True)
def test_int8_rounds_each_output_by_its_own_scale(int8_form: type) -> None:
    weights = random_weights((60, 64))[0] * torch.logspace(-6, 6, 60)[:, None]
    weights[7] = 0
    weights[8, 3] = 40 * weights[8].abs().max()
    matrix = place([weights], 60, 64, dtype=torch.int8, memory=WeightMemory(CPU))
    assert isinstance(matrix, int8_form) and isinstance(matrix, Int8Matrix | PackedMatrix)
    steps = weights.abs().amax(dim=1, keepdim=True) / 127
    # Half a step, and a little where rounding the scale to bfloat16 made the steps longer or cut the largest weight.
    assert ((matrix.dequantised() - weights).abs() <= 0.51 * steps).all()
    assert not matrix.dequantised()[7].any()


@pytest.mark.parametrize("int8_form", INT8_FORMS, indirect=True)
def test_weights_that_are_exact_in_int8_give_the_products_of_bfloat16(int8_form: type) -> None:
    integers = torch.randint(-127, 128, (90, 512), generator=torch.Generator().manual_seed(3)).float()
    integers[:, 0] = 127
    weights = integers / 2**12
    exact, small = (
        place([weights], 90, 512, dtype=dtype, memory=WeightMemory(CPU)) for dtype in (torch.bfloat16, torch.int8)
    )
    assert isinstance(small, Int8Matrix | PackedMatrix) and torch.equal(small.dequantised(), weights)
    for count in (1, 5, 40):
        rows = random_rows(count, 512, torch.bfloat16)
        torch.testing.assert_close(times(rows, small), times(rows, exact), atol=0.02, rtol=0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8], ids=["float32", "bfloat16", "int8"])
def test_tensors_are_read_one_at_a_time(dtype: torch.dtype) -> None:
    """So that loading needs the memory of one tensor beside the result."""
    given: list[weakref.ref[Tensor]] = []

    def parts() -> Iterator[Tensor]:
        for _ in range(4):
            assert sum(tensor() is not None for tensor in given) <= 1
            (weight,) = random_weights((8, 16))
            given.append(weakref.ref(weight))
            yield weight
            del weight

    place(parts(), 32, 16, dtype=dtype, memory=WeightMemory(CPU))


def test_onednn_is_on_again_after_a_product_of_one_row() -> None:
    matrix = place(random_weights((8, 16)), 8, 16, dtype=torch.bfloat16, memory=WeightMemory(CPU))
    times(random_rows(1, 16, torch.bfloat16), matrix)
    assert torch.backends.mkldnn.enabled
    with pytest.raises(RuntimeError):
        times(random_rows(1, 15, torch.bfloat16), matrix)
    assert torch.backends.mkldnn.enabled


def test_memory_is_shared_and_never_overlaps() -> None:
    memory = WeightMemory(CPU)
    tensors = [memory.empty(3, 5 + n, dtype=dtype) for n in range(9) for dtype in (torch.int8, torch.float32)]
    tensors.append(memory.empty(9_000_000, dtype=torch.float32))  # more than a chunk
    tensors.append(memory.empty(7, dtype=torch.bfloat16))
    for number, tensor in enumerate(tensors):
        assert tensor.is_contiguous() and tensor.data_ptr() % 64 == 0
        tensor.fill_(number)
    assert all((tensor == number).all() for number, tensor in enumerate(tensors))
