"""core/problem.py: what a call takes, and every refusal with its value, expectation and remedy."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tilelang_gemm_wrapper.core.problem import check_tensors, checked_problem, is_nested, operand_problem

FP8, F32, BF16 = torch.float8_e4m3fn, torch.float32, torch.bfloat16
ORDER = ("A", "A_scale", "B", "B_scale", "C")


def tensors(M=4, N=48, K=256, **replaced):
    """The five tensors of a right call, some replaced."""
    groups = math.ceil(K / 128)
    made = {
        "A": torch.zeros(M, K).to(FP8),
        "A_scale": torch.ones(M, groups),
        "B": torch.zeros(N, K).to(FP8),
        "B_scale": torch.ones(math.ceil(N / 128), groups),
        "C": torch.empty(M, N, dtype=BF16),
    }
    return made | replaced


def check(**made):
    return checked_problem(*(made[name] for name in ORDER))


def at_offset(shape, dtype, offset):
    """A contiguous tensor whose first element lies `offset` bytes after a 64-byte boundary."""
    count, size = math.prod(shape), dtype.itemsize
    storage = torch.zeros(count * size + 128, dtype=torch.uint8)
    start = -storage.data_ptr() % 64 + offset
    tensor = storage[start : start + count * size].view(dtype).view(shape)
    assert not count or tensor.data_ptr() % 64 == offset  # PyTorch gives 0 for an empty tensor
    return tensor


def end_to_start(shared, c_shape, operand_shape):
    """C, and an operand that begins `shared` bytes before C ends."""
    c_bytes, operand_bytes = 2 * math.prod(c_shape), math.prod(operand_shape)
    storage = at_offset((c_bytes - shared + operand_bytes,), torch.uint8, 0)
    operand = storage[c_bytes - shared :].view(FP8).view(operand_shape)
    return storage[:c_bytes].view(BF16).view(c_shape), operand


def column_major(M, groups, leading):
    return torch.ones(groups, leading).t()[:M]


ACCEPTED = {
    "row-major": {},
    "column-major": {"A_scale": column_major(4, 2, 4)},
    "column-major with TMA padding": {"M": 5, "A_scale": column_major(5, 2, 8)},
    "no token": {"M": 0},
    "no token, column-major": {"M": 0, "A_scale": column_major(0, 2, 4)},
    "one token": {"M": 1},
    "one token out of many": {
        "M": 1,
        "A": torch.zeros(5, 256).to(FP8)[::3][:1],
        "A_scale": torch.ones(7, 2)[::2][:1],
        "C": torch.empty(9, 48, dtype=BF16)[::4][:1],
    },
    "one token of a column-major scale": {"M": 1, "A_scale": column_major(1, 2, 4)},
    "one token of a column-major scale, every third": {"M": 1, "A_scale": torch.ones(2, 8).t()[::3][:1]},
    "one group of a padded column": {"K": 128, "A_scale": column_major(4, 1, 8)},
    "one row of B": {"N": 1, "B": torch.zeros(6, 256).to(FP8)[::2][:1]},
    "ragged N and K": {"N": 131, "K": 257},
    "tiny N and K": {"N": 1, "K": 1},
    "inside larger storages": {
        "A": at_offset((4, 256), FP8, 16),
        "A_scale": torch.ones(6, 2)[1:5],
        "B": at_offset((48, 256), FP8, 48),
        "B_scale": torch.ones(2, 2)[1:],
        "C": at_offset((4, 48), BF16, 32),
    },
    "a parameter": {"B": torch.nn.Parameter(torch.zeros(48, 256).to(FP8), requires_grad=False)},
    "NaN and Inf": {"A_scale": torch.tensor([[math.nan, math.inf]] * 4)},
}


@pytest.mark.parametrize("replaced", ACCEPTED.values(), ids=ACCEPTED)
def test_accepted(replaced):
    made = tensors(**replaced)
    (M, K), N = made["A"].shape, made["B"].shape[0]
    assert check(**made) == (M, N, K, -1)


def _one_buffer(shape):
    """(fp8 A or B of that shape, bf16 C of 4 x 48 over its last bytes)."""
    storage = torch.zeros(math.prod(shape) + 512, dtype=torch.uint8)
    end = math.prod(shape)
    operand = storage[:end].view(FP8).view(shape)
    return operand, storage[end - 16 : end - 16 + 4 * 48 * 2].view(BF16).view(4, 48)


A_UNDER_C, C_OVER_A = _one_buffer((4, 256))
B_UNDER_C, C_OVER_B = _one_buffer((48, 256))

# What is replaced, the exception, and what it must say: value, expectation, remedy.
REFUSED = {
    "A is a list": ({"A": [1.0]}, TypeError, ["A is list", "torch.Tensor", "(A, A_scale), (B, B_scale)"]),
    "A_scale is None": ({"A_scale": None}, TypeError, ["A_scale is NoneType", "torch.Tensor", "call"]),
    "B is an array": ({"B": torch.ones(48, 256).numpy()}, TypeError, ["B is ndarray", "torch.Tensor"]),
    "B_scale is a number": ({"B_scale": 1.0}, TypeError, ["B_scale is float", "torch.Tensor"]),
    "C is text": ({"C": "out"}, TypeError, ["C is str", "torch.Tensor"]),
    "A bfloat16": (
        {"A": torch.zeros(4, 256, dtype=BF16)},
        TypeError,
        ["A has dtype torch.bfloat16", "torch.float8_e4m3fn", "per_token_group_quant_fp8"],
    ),
    "A e5m2": (
        {"A": torch.zeros(4, 256).to(torch.float8_e5m2)},
        TypeError,
        ["A has dtype", "e5m2", "e4m3fn"],
    ),
    "A_scale half": (
        {"A_scale": torch.ones(4, 2).half()},
        TypeError,
        ["A_scale has dtype torch.float16", "torch.float32", "per_token_group_quant_fp8"],
    ),
    "B fnuz": (
        {"B": torch.zeros(48, 256).to(torch.float8_e4m3fnuz)},
        TypeError,
        ["B has dtype torch.float8_e4m3fnuz", "torch.float8_e4m3fn;", "per_block_quant_fp8"],
    ),
    "B_scale ue8m0": (
        {"B_scale": torch.ones(1, 2).to(torch.float8_e8m0fnu)},
        TypeError,
        ["B_scale has dtype torch.float8_e8m0fnu", "torch.float32", "per_block_quant_fp8"],
    ),
    "C half": (
        {"C": torch.empty(4, 48).half()},
        TypeError,
        ["C has dtype torch.float16", "torch.bfloat16", "leave C out"],
    ),
    "A with a batch": (
        {"A": torch.zeros(1, 4, 256).to(FP8)},
        ValueError,
        ["A has shape (1, 4, 256)", "2 dimensions", "reshape"],
    ),
    "B flat": ({"B": torch.zeros(256).to(FP8)}, ValueError, ["B has shape (256,)", "2 dimensions"]),
    "A_scale flat": ({"A_scale": torch.ones(4)}, ValueError, ["A_scale has shape (4,)", "2 dimensions"]),
    "B_scale scalar": ({"B_scale": torch.ones(())}, ValueError, ["B_scale has shape ()", "2 dimensions"]),
    "C with a batch": (
        {"C": torch.empty(1, 4, 48, dtype=BF16)},
        ValueError,
        ["C has shape (1, 4, 48)", "2 dimensions"],
    ),
    "C sparse": (
        {"C": torch.zeros(4, 48, dtype=BF16).to_sparse()},
        ValueError,
        ["C has layout torch.sparse_coo", "torch.strided", "dense"],
    ),
    "C nested": (
        {"C": torch.nested.nested_tensor([torch.zeros(48, dtype=BF16)] * 4)},
        ValueError,
        ["C is nested", "torch.strided", "dense"],
    ),
    "no K": ({"K": 0}, ValueError, ["A is (4, 0)", "B (48, 0)", "at least 1"]),
    "no N": ({"N": 0}, ValueError, ["B (0, 256)", "at least 1"]),
    "K differs": (
        {"B": torch.zeros(48, 128).to(FP8)},
        ValueError,
        ["B has shape (48, 128)", "expected (48, 256)", "A (4, 256)", "transpose"],
    ),
    "K of B is larger": ({"B": torch.zeros(48, 384).to(FP8)}, ValueError, ["shape (48, 384)", "(48, 256)"]),
    **{
        f"{name} a row more": (
            {name: torch.zeros(shape[0] + 1, shape[1]).to(dtype)},
            ValueError,
            [f"{name} has shape {(shape[0] + 1, shape[1])}", f"expected {shape}"],
        )
        for name, shape, dtype in (("A_scale", (4, 2), F32), ("B_scale", (1, 2), F32), ("C", (4, 48), BF16))
    },
    "A_scale a token short": (
        {"A_scale": torch.ones(3, 2)},
        ValueError,
        ["A_scale has shape (3, 2)", "expected (4, 2)", "per_token_group_quant_fp8"],
    ),
    "A_scale transposed": ({"A_scale": torch.ones(2, 4)}, ValueError, ["shape (2, 4)", "expected (4, 2)"]),
    "A_scale floors K": (
        {"K": 257, "A_scale": torch.ones(4, 2)},
        ValueError,
        ["A_scale has shape (4, 2)", "expected (4, 3)"],
    ),
    "B_scale a row of B": (
        {"B_scale": torch.ones(48, 2)},
        ValueError,
        ["B_scale has shape (48, 2)", "expected (1, 2)", "128 x 128", "per_block_quant_fp8"],
    ),
    **{
        f"B_scale of {blocks} blocks for {N} rows": (
            {"N": N, "B_scale": torch.ones(blocks, 2)},
            ValueError,
            [f"B_scale has shape ({blocks}, 2)", f"expected ({math.ceil(N / 128)}, 2)"],
        )
        for N, blocks in ((128, 2), (129, 1), (256, 1), (257, 2))
    },
    "C transposed": (
        {"C": torch.empty(48, 4, dtype=BF16)},
        ValueError,
        ["C has shape (48, 4)", "expected (4, 48)", "leave C out"],
    ),
    **{
        f"{name} on meta": (
            {name: tensor.to("meta")},
            ValueError,
            ["different devices", f"{name} on meta", "on cpu", "move"],
        )
        for name, tensor in tensors().items()
    },
    "all on meta": (
        {name: tensor.to("meta") for name, tensor in tensors().items()},
        ValueError,
        ["on meta", "CUDA device or the CPU", "move"],
    ),
    "A of every other column": (
        {"A": torch.zeros(4, 512).to(FP8)[:, ::2]},
        ValueError,
        ["A has stride (512, 2)", "contiguous", "A.contiguous()"],
    ),
    "A of padded rows": ({"A": torch.zeros(4, 272).to(FP8)[:, :256]}, ValueError, ["A has stride (272, 1)"]),
    "B column-major": (
        {"B": torch.zeros(256, 48).to(FP8).t()},
        ValueError,
        ["B has stride (1, 48)", "contiguous", "B.contiguous()"],
    ),
    "B_scale column-major": (
        {"N": 256, "B_scale": torch.ones(2, 2).t()},
        ValueError,
        ["B_scale has stride (1, 2)", "contiguous", "B_scale.contiguous()"],
    ),
    "C of padded rows": (
        {"C": torch.empty(4, 64, dtype=BF16)[:, :48]},
        ValueError,
        ["C has stride (64, 1)", "contiguous", "leave C out"],
    ),
    "C expanded": ({"C": torch.empty(1, 48, dtype=BF16).expand(4, 48)}, ValueError, ["C has stride (0, 1)"]),
    "A_scale of padded rows": (
        {"A_scale": torch.ones(4, 3)[:, :2]},
        ValueError,
        ["A_scale has stride (3, 1)", "row-major (2, 1)", "column-major (1, at least 4)", "contiguous()"],
    ),
    "A_scale of every other column-major token": (
        {"A_scale": torch.ones(2, 8).t()[::2]},
        ValueError,
        ["A_scale has stride (2, 8)", "column-major (1, at least 4)"],
    ),
    "A_scale expanded over tokens": (
        {"A_scale": torch.ones(1, 2).expand(4, 2)},
        ValueError,
        ["stride (0, 1)"],
    ),
    "A_scale of one token for all": (
        {"A_scale": torch.ones(16).as_strided((4, 2), (0, 8))},
        ValueError,
        ["stride (0, 8)", "column-major (1, at least 4)"],
    ),
    "A_scale with overlapping columns": (
        {"A_scale": torch.ones(16).as_strided((4, 2), (1, 3))},
        ValueError,
        ["stride (1, 3)", "at least 4"],
    ),
    **{
        f"{name} starts {offset} bytes off": (
            {name: at_offset(shape, dtype, offset)},
            ValueError,
            [f"{name} starts at byte {offset % 16} of 16", "16-byte aligned", remedy],
        )
        for name, shape, dtype, offset, remedy in (
            ("A", (4, 256), FP8, 1, "A.clone()"),
            ("B", (48, 256), FP8, 24, "B.clone()"),
            ("C", (4, 48), BF16, 2, "leave C out"),
        )
    },
    "C over the end of A": ({"A": A_UNDER_C, "C": C_OVER_A}, ValueError, ["C overlaps A", "allocate"]),
    "C over the end of B": ({"B": B_UNDER_C, "C": C_OVER_B}, ValueError, ["C overlaps B", "allocate"]),
    "C over the start of A": (
        {"A": A_UNDER_C, "C": A_UNDER_C.view(torch.uint8).view(-1)[:384].view(BF16).view(4, 48)},
        ValueError,
        ["C overlaps A"],
    ),
    **{
        f"the last {bytes_shared} bytes of C over {name}": (
            dict(zip(("C", name), end_to_start(bytes_shared, (4, 48), shape), strict=True)),
            ValueError,
            [f"C overlaps {name}"],
        )
        for name, shape in (("A", (4, 256)), ("B", (48, 256)))
        for bytes_shared in (16, 96, 368)  # of 384: less than half of C, and more
    },
    **{
        f"{name} requires grad": (
            {name: tensor.clone().requires_grad_()},
            ValueError,
            [f"{name} requires grad", "no backward", f"{name}.detach()", "no_grad"],
        )
        for name, tensor in tensors().items()
    },
}


@pytest.mark.parametrize(("replaced", "kind", "said"), REFUSED.values(), ids=REFUSED)
def test_refused(replaced, kind, said):
    with pytest.raises(kind) as refusal:
        check(**tensors(**replaced))
    assert type(refusal.value) is kind
    missing = [text for text in said if text not in str(refusal.value)]
    assert not missing, (missing, str(refusal.value))


def test_neighbours_do_not_overlap():
    """C may begin at the very byte where an operand ends, and end where the other begins."""
    made = tensors()
    sizes = {name: made[name].numel() * made[name].itemsize for name in ("A", "B", "C")}
    for order in ("ACB", "BCA"):
        parts = torch.zeros(sum(sizes.values()), dtype=torch.uint8).split([sizes[name] for name in order])
        for name, part in zip(order, parts, strict=True):
            made[name] = part.view(made[name].dtype).view(made[name].shape)
        assert check(**made) == (4, 48, 256, -1)


@pytest.mark.parametrize("name", ["A", "B"])
def test_c_is_refused_wherever_it_shares_a_byte_with_an_operand(name):
    """C slides over the operand, from before it to behind it, 16 bytes at a time."""
    made = tensors()
    c_bytes, size = 2 * made["C"].numel(), made[name].numel()
    storage = torch.zeros(c_bytes + size + c_bytes, dtype=torch.uint8)
    made[name] = storage[c_bytes : c_bytes + size].view(FP8).view(made[name].shape)
    for start in range(0, c_bytes + size + 1, 16):
        made["C"] = storage[start : start + c_bytes].view(BF16).view(made["C"].shape)
        if start in (0, c_bytes + size):  # it ends where the operand begins, or begins where that ends
            assert check(**made) == (4, 48, 256, -1)
            with pytest.raises(ValueError, match="A_scale requires grad"):  # not: "C overlaps"
                check(**made | {"A_scale": torch.ones(4, 2, requires_grad=True)})
        else:
            with pytest.raises(ValueError, match=f"C overlaps {name}"):
                check(**made)


class OnGpu(torch.Tensor):
    """A CPU tensor that says it lies on GPU `index`."""

    index: int
    is_cpu = False

    @property
    def device(self):
        return torch.device("cuda", self.index)

    def get_device(self):
        return self.index


def on_gpu(tensor, index):
    moved = tensor.as_subclass(OnGpu)
    moved.index = index
    return moved


@pytest.mark.parametrize("index", [0, 1])
def test_all_tensors_lie_on_one_gpu(index):
    made = {name: on_gpu(tensor, index) for name, tensor in tensors().items()}
    assert check(**made) == (4, 48, 256, index)
    for name in ORDER:
        with pytest.raises(ValueError, match=f"different devices .*{name} on cuda:{1 - index}"):
            check(**made | {name: on_gpu(tensors()[name], 1 - index)})
    for count in range(1, len(ORDER)):
        elsewhere = {name: on_gpu(tensors()[name], 1 - index) for name in ("A", "B", "C", "A_scale")[:count]}
        with pytest.raises(ValueError, match="different devices"):
            check(**made | elsewhere)


@pytest.mark.parametrize("name", ORDER)
def test_requires_grad_is_no_matter_without_gradients(name):
    made = tensors()
    made[name].requires_grad_()
    with torch.no_grad():
        assert check(**made) == (4, 48, 256, -1)


@pytest.mark.parametrize(
    ("A", "B", "said"),
    [
        (torch.zeros(4, 256), (None, None), ["A is a Tensor", "pair (values, scales)", "call gemm"]),
        ((1, 2), (1, 2, 3), ["B is a tuple of 3", "pair"]),
        ([1], (1, 2), ["A is a list of 1", "pair"]),
        ((torch.ones(()), torch.ones(4, 2)), (torch.ones(2, 2),) * 2, ["A has shape ()", "2 dimensions"]),
        ((torch.ones(2, 2),) * 2, ("w", torch.ones(2, 2)), ["B is str", "torch.Tensor"]),
        ((torch.ones(2, 2), 1.0), (torch.ones(2, 2),) * 2, ["A_scale is float", "torch.Tensor"]),
        ((torch.ones(2, 2),) * 2, (torch.ones(2, 2), 1.0), ["B_scale is float", "torch.Tensor"]),
        ((torch.ones(2, 2),) * 2, (torch.ones(2, 2), torch.ones(2)), ["B_scale has shape (2,)"]),
    ],
)
def test_operands_that_are_no_pairs_of_matrices(A, B, said):
    message = str(operand_problem(A, B))
    assert all(text in message for text in said), message


def test_what_is_no_tensor_is_named():
    check_tensors(*tensors().values())
    for name in ORDER:
        with pytest.raises(TypeError, match=f"^{name} is str, expected a torch.Tensor"):
            check_tensors(**tensors(**{name: "text"}))


def _inside_b(tensor, B):
    """Like `tensor`, but in memory that B uses, as far as it is large enough."""
    enough = (
        isinstance(B, torch.Tensor)
        and B.is_cpu
        and B.numel() * B.itemsize >= tensor.numel() * tensor.itemsize
    )
    if not enough or not B.is_contiguous():
        return tensor
    return torch.empty(0, dtype=tensor.dtype).set_(B.untyped_storage(), 0, tensor.shape)


@st.composite
def calls(draw):
    """A right call with up to three tensors swapped for variants that may or may not be wrong."""
    M, N, K = draw(st.integers(0, 3)), draw(st.integers(0, 130)), draw(st.integers(0, 257))
    made = tensors(M, N, K)
    for name in draw(st.lists(st.sampled_from(ORDER), max_size=3, unique=True)):
        made[name] = draw(st.sampled_from(VARIANTS))(made[name], made)
    return made


VARIANTS = [
    lambda tensor, made: tensor.clone(),
    lambda tensor, made: tensor.to("meta"),
    lambda tensor, made: tensor.float(),
    lambda tensor, made: tensor.to(BF16),
    lambda tensor, made: tensor.t(),
    lambda tensor, made: tensor.t().contiguous().t(),
    lambda tensor, made: tensor[:1].expand(tensor.shape[0], -1) if tensor.shape[0] else tensor,
    lambda tensor, made: tensor[::2],
    lambda tensor, made: tensor[:, ::2],
    lambda tensor, made: tensor[0] if tensor.shape[0] else tensor,
    lambda tensor, made: tensor.unsqueeze(0),
    lambda tensor, made: at_offset(tensor.shape, tensor.dtype, 4),
    lambda tensor, made: at_offset(tensor.shape, tensor.dtype, 32),
    lambda tensor, made: tensor.as_strided(tensor.shape, (0, 0)) if tensor.numel() else tensor,
    lambda tensor, made: tensor.clone().requires_grad_(),
    lambda tensor, made: made["A"],
    lambda tensor, made: _inside_b(tensor, made["B"]),
    lambda tensor, made: None,
]


@settings(max_examples=400, deadline=None)
@given(calls())
def test_what_is_refused_is_explained(made):
    """The one expression and the search for the reason agree: no refusal without a reason of its own."""
    try:
        M, N, K, index = check(**made)
    except (TypeError, ValueError) as refusal:
        assert "unsupported tensors" not in str(refusal)
        assert ";" in str(refusal)  # what is wrong; what to do
    else:
        assert index == -1
        assert tuple(made["A"].shape) == (M, K)
        assert made["B"].shape[0] == N
        # Everything accepted can be computed.
        assert all(made[name].device.type == "cpu" and made[name].dim() == 2 for name in ORDER)
        assert made["C"].shape == (M, N)
        assert not any(made[name].requires_grad for name in ORDER)


@pytest.mark.parametrize(
    "transform",
    [
        lambda run, A, A_scale: torch.func.vmap(run)(A.expand(2, -1, -1), A_scale.expand(2, -1, -1)),
        lambda run, A, A_scale: torch.func.functionalize(run)(A, A_scale),
    ],
    ids=["vmap", "functionalize"],
)
def test_what_has_no_memory_is_told_apart_from_what_lies_wrong(transform):
    made = tensors()

    def run(A, A_scale):
        return check(**made | {"A": A, "A_scale": A_scale, "C": torch.empty(4, 48, dtype=BF16)})

    with pytest.raises(ValueError, match=r"A has no memory of its own, as in torch\.func's vmap"):
        transform(run, made["A"], made["A_scale"])


def test_meta_tensors_are_sent_to_the_op_that_traces():
    made = {name: tensor.to("meta") for name, tensor in tensors().items()}
    with pytest.raises(ValueError, match=r"shapes call torch\.ops\.tilelang_gemm\.gemm_nt_f8f8bf16"):
        check(**made)


def test_values_alone_may_be_nested() -> None:
    nested, dense = torch.nested.nested_tensor([torch.zeros(4)]), torch.zeros(4)
    pairs = [(nested, dense), (dense, nested), (dense, dense), ("no tensor", nested)]
    assert [is_nested(pair) for pair in pairs] == [True, False, False, False]
