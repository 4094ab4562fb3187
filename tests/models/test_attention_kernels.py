"""Every kernel against one dense masked softmax; those for GPUs through stand-ins."""

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from dense_attention import dense_attention, dense_mask, flash_semantics
from torch import Tensor

from veritune.batches.batch import Batch
from veritune.batches.pack import pack
from veritune.errors import VerituneWarning
from veritune.models import attention, attention_kernels
from veritune.models.attention import Demands, Offers, kernels_for, proof, segment_attention
from veritune.models.attention_kernels import ScoreRule
from veritune.tokens.encode import TokenizedRecord

Make = Callable[..., list[TokenizedRecord]]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def varlen_stand_in(*args: Any, enable_gqa: bool = False, **settings: Any) -> Tensor:
    query, key = args[:2]
    assert enable_gqa or query.shape[1] == key.shape[1], "heads are shared only when asked to"
    return flash_semantics(*args, **settings)


def flash_stand_in(*args: Any, softmax_scale: float, causal: bool, **settings: Any) -> Tensor:
    assert causal
    return flash_semantics(*args, scale=softmax_scale, **settings)


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_kernels, "varlen", varlen_stand_in)
    package = SimpleNamespace(flash_attn_varlen_func=flash_stand_in)
    monkeypatch.setitem(sys.modules, "flash_attn", package)


@pytest.fixture(scope="module", params=["shared", "unshared", "filled"])
def row(request: Any, make_groups: Make) -> tuple[list[TokenizedRecord], Batch]:
    groups = make_groups([(7, (5, 3)), (2, (1, 6)), (7, (5,)), (1, (4, 4, 2))])
    if request.param == "unshared":
        # As many groups of one completion each.
        groups = [TokenizedRecord(g.prompt, (c,), g.origin) for g in groups for c in g.completions]
        return groups, pack(groups, range(len(groups)), shares_prefix=False)
    multiple = 64 if request.param == "filled" else 1
    return groups, pack(groups, range(len(groups)), multiple_of=multiple)


def states(batch: Batch, heads: int, key_heads: int, size: int, value_size: int) -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    return [
        torch.randn(1, count, batch.num_tokens, width, generator=draw, dtype=torch.float64)
        for count, width in ((heads, size), (key_heads, size), (key_heads, value_size))
    ]


def mask_of(groups: list[TokenizedRecord], batch: Batch, window: int | None) -> Tensor:
    """Who sees whom; tokens that fill the row see each other."""
    used = batch.num_data_tokens
    mask = torch.zeros(batch.num_tokens, batch.num_tokens, dtype=torch.bool)
    mask[:used, :used] = dense_mask(groups, batch, window)
    mask[used:, used:] = True
    return mask


@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize("kernel", ["varlen", "flash", "flex", "loop"])
@pytest.mark.parametrize("window", [None, 1, 3, 100])
@pytest.mark.parametrize("sizes", [(4, 2, 16, 16), (4, 4, 16, 16), (6, 2, 10, 16), (2, 1, 16, 6)])
def test_a_kernel_gives_a_dense_masked_softmax(
    row: Any, kernel: Any, window: int | None, sizes: tuple[int, int, int, int]
):
    groups, batch = row
    leaves = states(batch, *sizes)
    # On a processor, the flexible kernel has no gradient and no other value sizes.
    has_gradient = kernel != "flex"
    if kernel == "flex":
        leaves = [leaf.float() for leaf in leaves]
    for leaf in leaves:
        leaf.requires_grad_(has_gradient)

    found = attention.KERNELS[kernel](*leaves, batch.plan, ScoreRule(0.4, window))
    mask = mask_of(groups, batch, window)
    expected = dense_attention(*leaves, mask, 0.4, None, None)

    used = batch.num_data_tokens
    assert found.shape == (1, batch.num_tokens, sizes[0], sizes[3])
    torch.testing.assert_close(
        found[:, :used], expected[:, :used].to(found.dtype), rtol=0, atol=2e-6
    )
    if has_gradient:
        upstream = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
        upstream[:, used:] = 0
        given = torch.autograd.grad((found * upstream).sum(), leaves)
        wanted = torch.autograd.grad((expected * upstream).sum(), leaves)
        for gradient, correct in zip(given, wanted, strict=True):
            torch.testing.assert_close(gradient, correct, rtol=0, atol=1e-9)


@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize("kernel", ["flash", "flex", "loop"])
@pytest.mark.parametrize("has_sinks", [False, True])
def test_bounds_and_sinks_are_carried_out(row: Any, kernel: Any, has_sinks: bool):
    if kernel == "flash" and has_sinks:
        pytest.skip("flash-attn has no sinks, and is not asked for them")
    groups, batch = row
    leaves = [leaf.float() for leaf in states(batch, 4, 2, 16, 16)]
    sinks = torch.tensor([0.5, -1.0, 2.0, 0.0]) if has_sinks else None

    found = attention.KERNELS[kernel](*leaves, batch.plan, ScoreRule(0.4, 3, 2.0, sinks))
    expected = dense_attention(*leaves, mask_of(groups, batch, 3), 0.4, 2.0, sinks)

    used = batch.num_data_tokens
    torch.testing.assert_close(found[:, :used].double(), expected[:, :used], rtol=0, atol=5e-6)


@pytest.mark.parametrize("window", [None, 3])
def test_a_torch_without_shared_heads_is_given_as_many_key_heads_as_heads(
    row: Any, window: int | None, monkeypatch: pytest.MonkeyPatch
):
    """torch 2.11: no `enable_gqa`."""
    groups, batch = row
    monkeypatch.setattr(attention_kernels, "varlen", flash_semantics)
    monkeypatch.setattr(attention_kernels, "_VARLEN_ARGUMENTS", {"scale", "window_size"})
    heads = []
    watched = attention_kernels._laid_out

    def watch(query: Tensor, key: Tensor, value: Tensor, plan: Any) -> Any:
        heads.append((query.shape[1], key.shape[1], value.shape[1]))
        return watched(query, key, value, plan)

    monkeypatch.setattr(attention_kernels, "_laid_out", watch)
    leaves = states(batch, 4, 2, 16, 16)

    found = attention_kernels.varlen_attention(*leaves, batch.plan, ScoreRule(0.4, window))
    expected = dense_attention(*leaves, mask_of(groups, batch, window), 0.4, None, None)

    assert heads == [(4, 4, 4)]
    used = batch.num_data_tokens
    torch.testing.assert_close(found[:, :used], expected[:, :used], rtol=0, atol=1e-9)


def test_a_row_without_prefixes_gathers_no_keys(make_groups: Make):
    batch = pack(make_groups([(5, (4, 3))]), [0], shares_prefix=False)
    leaves = states(batch, 4, 2, 16, 16)

    _, keys, values = attention_kernels._laid_out(*leaves, batch.plan)

    assert keys.data_ptr() == leaves[1].data_ptr()
    assert values.data_ptr() == leaves[2].data_ptr()


def test_this_torch_has_the_kernel_with_scale_and_windows():
    assert attention_kernels.HAS_VARLEN


def demands(**changes: Any) -> Demands:
    plain: dict[str, Any] = {
        "device": CUDA,
        "dtype": torch.bfloat16,
        "size": 128,
    }
    return Demands(**{**plain, **changes})


NONE, VARLEN, FLASH, BOTH = (
    Offers(False, False),
    Offers(True, False),
    Offers(False, True),
    Offers(True, True),
)


@pytest.mark.parametrize(
    ("changes", "offers", "expected"),
    [
        ({}, BOTH, ("varlen", "flash", "flex", "loop")),
        ({}, VARLEN, ("varlen", "flex", "loop")),
        ({}, FLASH, ("flash", "flex", "loop")),
        ({}, NONE, ("flex", "loop")),
        ({"dtype": torch.float16}, VARLEN, ("varlen", "flex", "loop")),
        ({"dtype": torch.float32}, BOTH, ("loop",)),
        ({"dtype": torch.float64}, BOTH, ("loop",)),
        ({"size": 256}, VARLEN, ("varlen", "flex", "loop")),
        ({"size": 512}, BOTH, ("flex", "loop")),
        ({"has_softcap": True}, BOTH, ("flash", "flex", "loop")),
        ({"has_softcap": True}, VARLEN, ("flex", "loop")),
        ({"has_sinks": True}, BOTH, ("flex", "loop")),
        ({"device": CPU, "dtype": torch.float32}, BOTH, ("blocks", "loop")),
        ({"device": CPU, "dtype": torch.float64}, BOTH, ("blocks", "loop")),
        ({"device": CPU, "dtype": torch.bfloat16}, BOTH, ("loop",)),
        ({"device": CPU, "dtype": torch.float32, "has_softcap": True}, BOTH, ("loop",)),
        ({"device": CPU, "dtype": torch.float32, "has_sinks": True}, BOTH, ("loop",)),
        ({"device": torch.device("mps"), "dtype": torch.float32}, BOTH, ("loop",)),
    ],
)
def test_the_fastest_kernel_that_can_do_it_comes_first(
    changes: dict[str, Any], offers: Offers, expected: tuple[str, ...]
):
    assert kernels_for(demands(**changes), offers) == expected


def test_head_sizes_are_rounded_up_to_those_of_kernels():
    def size(head: int, value: int) -> int:
        return attention._size(torch.empty(1, 1, 1, head), torch.empty(1, 1, 1, value))

    assert [size(8, 8), size(64, 64), size(65, 64), size(192, 128)] == [32, 64, 96, 192]
    assert [size(64, 128), size(300, 8), size(9999, 8)] == [128, 512, 512]


ON_CPU = demands(device=CPU, dtype=torch.float32, size=16)


@pytest.mark.usefixtures("stand_ins")
def test_a_kernel_that_gives_the_results_of_the_loop_is_proven():
    assert proof("varlen", ON_CPU) is None
    assert proof("flash", ON_CPU._replace(has_softcap=True)) is None
    assert proof("varlen", ON_CPU._replace(dtype=torch.bfloat16)) is None
    assert proof("varlen", ON_CPU._replace(size=12)) is None
    with torch.inference_mode():
        assert proof("varlen", ON_CPU) is None


def test_a_kernel_that_aligns_at_the_first_tokens_is_found_out(monkeypatch: pytest.MonkeyPatch):
    def misaligned(*args: Any, enable_gqa: bool = False, **settings: Any) -> Tensor:
        return flash_semantics(*args, **settings, aligned_at="start")

    monkeypatch.setattr(attention_kernels, "varlen", misaligned)

    assert "off by" in str(proof("varlen", ON_CPU))


@pytest.mark.usefixtures("stand_ins")
def test_a_kernel_with_a_wrong_gradient_or_window_is_found_out(monkeypatch: pytest.MonkeyPatch):
    def half_gradient(*args: Any, **settings: Any) -> Tensor:
        out = varlen_stand_in(*args, **settings)
        return out / 2 + out.detach() / 2

    def too_wide(*args: Any, window_size: tuple[int, int], **settings: Any) -> Tensor:
        left = window_size[0] + (window_size[0] > 0)
        return varlen_stand_in(*args, window_size=(left, 0), **settings)

    for wrong in (half_gradient, too_wide):
        monkeypatch.setattr(attention_kernels, "varlen", wrong)
        assert "off by" in str(proof("varlen", ON_CPU))


@pytest.fixture
def fresh_choice() -> Any:
    attention._kernel_in_use.cache_clear()
    yield
    attention._kernel_in_use.cache_clear()


@pytest.mark.usefixtures("fresh_choice")
def test_a_kernel_that_fails_is_passed_over_and_said(row: Any, monkeypatch: pytest.MonkeyPatch):
    def fails(*_: Any, **__: Any) -> Tensor:
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(attention_kernels, "varlen", fails)
    monkeypatch.setattr(attention, "kernels_for", lambda *_: ("varlen", "loop"))
    groups, batch = row
    leaves = [leaf.float() for leaf in states(batch, 4, 2, 16, 16)]

    with pytest.warns(VerituneWarning, match="varlen is not used: it fails .no kernel image"):
        found, _ = segment_attention(SimpleNamespace(), *leaves, None, scaling=0.4, plan=batch.plan)
    # It is asked once, and no more.
    again, _ = segment_attention(SimpleNamespace(), *leaves, None, scaling=0.4, plan=batch.plan)

    used = batch.num_data_tokens
    expected = dense_attention(*leaves, mask_of(groups, batch, None), 0.4, None, None)
    torch.testing.assert_close(found[:, :used].double(), expected[:, :used], rtol=0, atol=1e-5)
    assert torch.equal(found, again)


@pytest.mark.usefixtures("fresh_choice", "stand_ins")
def test_under_autocast_kernels_get_half_precision_though_rotations_leave_float32(
    row: Any, monkeypatch: pytest.MonkeyPatch
):
    seen = []

    def watched(query: Tensor, key: Tensor, value: Tensor, *rest: Any, **settings: Any) -> Tensor:
        seen.append({query.dtype, key.dtype, value.dtype})
        return varlen_stand_in(query, key, value, *rest, **settings)

    monkeypatch.setattr(attention_kernels, "varlen", watched)
    monkeypatch.setattr(attention, "kernels_for", lambda *_: ("varlen",))
    _, batch = row
    query, key, value = (leaf.float() for leaf in states(batch, 4, 2, 16, 16))

    with torch.autocast("cpu", dtype=torch.bfloat16):
        segment_attention(SimpleNamespace(), query, key, value.bfloat16(), None, plan=batch.plan)

    assert set().union(*seen) == {torch.bfloat16}


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [32, 64, 96, 128, 192, 256])
def test_kernels_of_this_gpu_align_at_the_last_tokens_forward_and_backward(
    dtype: torch.dtype, size: int
):
    needs = demands(device=CUDA, dtype=dtype, size=size)

    for name in kernels_for(needs, Offers()):
        assert proof(name, needs) is None, name


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("setting", ["has_softcap", "has_sinks"])
def test_kernels_of_this_gpu_carry_out_bounds_and_sinks(setting: str):
    needs = demands(size=64, **{setting: True})

    for name in kernels_for(needs, Offers()):
        assert proof(name, needs) is None, name


@pytest.mark.gpu
@needs_gpu
def test_on_this_gpu_the_gradient_of_gathered_keys_is_summed_over_completions(make_groups: Make):
    """Keys of a prompt come once for each completion; 16 of them make an error of sums show."""
    batch = pack(make_groups([(130, [40] * 16), (3, [5])]), [0, 1])
    assert batch.plan is not None
    exact = [leaf.requires_grad_() for leaf in states(batch, 8, 2, 64, 64)]
    rounded = [leaf.detach().to(CUDA, torch.bfloat16).requires_grad_() for leaf in exact]
    rule = ScoreRule(0.125)
    expected = attention_kernels.loop_attention(*exact, batch.plan, rule)
    found = attention_kernels.varlen_attention(*rounded, batch.plan.to(CUDA), rule)
    upstream = torch.randn(found.shape, generator=torch.Generator().manual_seed(1)).double()

    given = torch.autograd.grad(found, rounded, upstream.to(CUDA, torch.bfloat16))
    wanted = torch.autograd.grad(expected, exact, upstream)

    for gradient, correct in zip(given, wanted, strict=True):
        difference = (gradient.cpu().double() - correct).norm() / correct.norm()
        assert difference < 0.02


@pytest.mark.gpu
@needs_gpu
def test_a_batch_on_this_gpu_is_the_batch(make_groups: Make):
    batch = pack(make_groups([(5, (4, 3))]), [0])
    moved = batch.to(CUDA)
    assert batch.plan is not None
    assert moved.plan is not None
    assert torch.equal(moved.input_ids.cpu(), batch.input_ids)
    assert torch.equal(moved.plan.key_ends.cpu(), batch.plan.key_ends)


@pytest.mark.parametrize("window", [None, 1, 5, 40, 1000])
def test_tiles_of_the_flexible_kernel_are_those_in_which_something_is_seen(
    make_groups: Make, monkeypatch: pytest.MonkeyPatch, window: int | None
):
    monkeypatch.setattr(attention_kernels, "_TILE", 8)
    groups = make_groups(
        [(40, (5, 33, 1)), (3, (20, 30)), (70, (2,)), (1, (1, 90)), (17, (16, 16, 40))]
    )
    batch = pack(groups, range(len(groups)), multiple_of=8)
    assert batch.plan is not None

    found = attention_kernels._make_block_mask(batch.plan, window, CPU)

    size = batch.num_tokens // 8
    mask = mask_of(groups, batch, window)
    filling = torch.arange(batch.num_data_tokens, batch.num_tokens)
    mask[filling[:, None], filling] = filling[:, None] >= filling
    if window is not None:
        mask[filling[:, None], filling] &= filling[:, None] - filling < window
    tiles = mask.view(size, 8, size, 8).transpose(1, 2).flatten(2)
    partly, fully = torch.zeros(2, size, size, dtype=torch.bool)
    for marked, counts, places in (
        (partly, found.kv_num_blocks, found.kv_indices),
        (fully, found.full_kv_num_blocks, found.full_kv_indices),
    ):
        for query, count in enumerate(counts[0, 0].tolist()):
            marked[query, places[0, 0, query, :count]] = True
    assert not (partly & fully).any()
    assert torch.equal(partly | fully, tiles.any(-1))
    assert not (fully & ~tiles.all(-1)).any()
    # Not marked are tiles over the end of a prompt and the beginning of what stands behind it.
    assert fully.sum() > (0.8 * tiles.all(-1).sum() if window is None else -1)
    query, key = torch.meshgrid(torch.arange(len(mask)), torch.arange(len(mask)), indexing="ij")
    assert torch.equal(found.mask_mod(0, 0, query, key), mask)
