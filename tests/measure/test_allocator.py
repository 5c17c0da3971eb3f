"""The simulated allocator: its rules, what must hold whatever is asked of it, and a real one beside it."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from segkit.measure import peak_memory
from segkit.measure.allocator import MIB, CachingAllocator, OutOfMemory, Requests
from segkit.models import build


@pytest.mark.parametrize(
    ("size", "reserved"),
    [
        (1, 2 * MIB),
        (MIB, 2 * MIB),
        (MIB + 1, 20 * MIB),
        (10 * MIB - 512, 20 * MIB),
        (10 * MIB, 10 * MIB),
        (10 * MIB + 1, 12 * MIB),
        (31 * MIB, 32 * MIB),
    ],
)
def test_segments(size, reserved):
    allocator = CachingAllocator()
    block = allocator.allocate(size)
    assert allocator.reserved == reserved
    allocator.free(block)
    assert (allocator.reserved, allocator.allocated) == (reserved, 0)
    allocator.allocate(size)
    assert allocator.reserved == allocator.highest_reserved == reserved


def test_small_requests_are_rounded_and_packed():
    allocator = CachingAllocator()
    blocks = [allocator.allocate(size) for size in (1, 512, 513)]
    assert [block.size for block in blocks] == [512, 512, 1024]
    assert allocator.reserved == 2 * MIB


def test_a_large_rest_is_split_off_and_a_small_one_is_not():
    allocator = CachingAllocator()
    assert allocator.allocate(9 * MIB).size == 9 * MIB
    assert allocator.allocate(10 * MIB).size == 11 * MIB  # 1 MiB would be left of the 20
    assert allocator.reserved == 20 * MIB
    assert allocator.allocate(20 * MIB - 512).size == 20 * MIB
    allocator = CachingAllocator()
    allocator.allocate(9 * MIB)
    assert allocator.allocate(10 * MIB - 512).size == 10 * MIB - 512  # 1 MiB and 512 bytes
    assert allocator.allocate(MIB + 512).size == MIB + 512


def test_the_smallest_block_that_fits_is_taken():
    allocator = CachingAllocator()
    wide, between, narrow, _ = (allocator.allocate(size * MIB) for size in (16, 2, 12, 2))
    allocator.free(wide)
    allocator.free(narrow)
    assert allocator.allocate(12 * MIB).address == narrow.address
    assert allocator.allocate(12 * MIB).address == wide.address
    assert between.size == 2 * MIB


def test_neighbors_are_joined_in_any_order():
    for order in ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)):
        allocator = CachingAllocator()
        blocks = [allocator.allocate(6 * MIB) for _ in range(3)]
        for i in order:
            allocator.free(blocks[i])
        assert allocator.allocate(20 * MIB).size == allocator.reserved == 20 * MIB


def test_unused_segments_go_back_before_memory_is_out():
    allocator = CachingAllocator(limit=44 * MIB)
    unused, used = allocator.allocate(20 * MIB), allocator.allocate(9 * MIB)
    allocator.free(unused)
    allocator.allocate(24 * MIB)
    assert allocator.reserved == allocator.highest_reserved == 44 * MIB
    with pytest.raises(
        OutOfMemory, match="44 MiB are reserved, 33 of them in use; 12 more do not fit into 44"
    ):
        allocator.allocate(12 * MIB - 511)
    assert allocator.allocate(11 * MIB).address == used.address + 9 * MIB


@given(
    st.lists(
        st.tuples(
            st.booleans(), st.one_of(st.integers(1, 3 * MIB), st.integers(1, 40 * MIB)), st.integers(0)
        ),
        max_size=60,
    )
)
def test_what_must_hold_whatever_is_asked(steps):
    allocator, used = CachingAllocator(), []
    highest = 0
    for free, size, which in steps:
        if free and used:
            allocator.free(used.pop(which % len(used)))
        else:
            block = allocator.allocate(size)
            assert size <= block.size <= size + 511 + MIB
            used.append(block)
        assert allocator.allocated == sum(block.size for block in used) <= allocator.reserved
        spans = sorted((block.address, block.address + block.size) for block in used)
        assert all(end <= begin for (_, end), (begin, _) in pairwise(spans))
        highest = max(highest, allocator.reserved)
        assert allocator.highest_reserved == highest
        pieces = [piece for segment in allocator.segments() for piece in segment]
        assert sum(piece.size for piece in pieces) == allocator.reserved
        assert {id(piece) for piece in pieces if not piece.free} == {id(block) for block in used}
    for block in used:
        allocator.free(block)
    assert allocator.allocated == 0
    assert all(len(segment) == 1 for segment in allocator.segments())
    allocator.limit = 50 * MIB  # every segment is whole again and can go back
    allocator.allocate(50 * MIB)
    assert allocator.reserved == 50 * MIB


def test_steps_one_after_the_other():
    requests = Requests(sizes=[12 * MIB, 30 * MIB, 16 * MIB, 14 * MIB, 0], fixed=1, order=[1, 2, ~1, 4, 3])
    seen = []
    allocator = requests.replay(steps=2, watch=lambda allocator, block: seen.append(block.size // MIB))
    assert seen == [12, *(30, 16, 14) * 2]
    assert allocator.allocated == 12 * MIB  # what is fixed
    # 3 goes into the room of 1, in the next step as well
    assert requests.reserved == allocator.reserved == (12 + 30 + 16) * MIB
    assert requests.fits(58 / 1024) and not requests.fits(57 / 1024)
    # Where it is tight, the unused 30 MiB go back for the 32.
    grown = Requests(sizes=[30 * MIB, 32 * MIB], fixed=0, order=[0, ~0, 1])
    assert grown.reserved == 62 * MIB and grown.fits(32 / 1024) and not grown.fits(31 / 1024)


@pytest.mark.parametrize(
    ("name", "recompute"),
    [
        ("ladder-resnet18-32-4", None),
        ("ldn121-32-4", "unit,stem,td,tu"),
        ("vnet", None),
        ("regseg", "block"),
        ("fastfcn-r50-enc-jpu", None),
    ],
)
def test_a_steps_requests_add_up_to_its_peak(name, recompute):
    """Without gaps and ends the requests are the timeline, sums of gradients in place included."""
    peak = peak_memory(build(name, device="meta", recompute=recompute), 2, (128, 128), optimizer="amsgrad")
    requests = peak.requests
    sizes = [-(-size // 512) * 512 for size in requests.sizes]
    now = highest = sum(sizes[: requests.fixed])
    for i in requests.order:
        now += sizes[i] if i >= 0 else -sizes[~i]
        highest = max(highest, now)
    assert highest == peak.total
    assert peak.total <= requests.replay().highest_allocated < 1.1 * peak.total
    assert peak.reserved >= requests.replay().highest_allocated
    assert peak.fits(peak.reserved / 2**30) and not peak.fits(peak.total / 2**30 / 1.001)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("seed", range(5))
def test_a_real_allocator_takes_as_much(seed):
    random = torch.Generator().manual_seed(seed)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_stats()
    allocator, tensors = CachingAllocator(), []
    for _ in range(300):
        if tensors and torch.rand((), generator=random) < 0.45:
            tensor, block = tensors.pop(int(torch.randint(len(tensors), (), generator=random)))
            allocator.free(block)
            del tensor
        else:
            size = int(2 ** (9 + 18 * torch.rand((), generator=random)))  # 512 bytes to 128 MiB
            tensors.append((torch.empty(size, dtype=torch.uint8, device="cuda"), allocator.allocate(size)))
        now = torch.cuda.memory_stats()
        for name in ("allocated", "reserved"):
            key = f"{name}_bytes.all.current"
            assert now[key] - before[key] == getattr(allocator, name)
