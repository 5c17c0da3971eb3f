"""What PyTorch takes from a GPU for a step: its caching allocator, simulated by its own rules.

`torch.cuda` hands out blocks of larger segments and keeps what is freed for later. So it holds more of the
card than tensors do: ends of blocks that it does not split off, and gaps that no later tensor fits into.
"""

from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

MIB = 2**20
SMALLEST = 512  # bytes; sizes are rounded up to multiples of it
SMALL = MIB  # requests up to this have segments of their own, of 2 MiB
SMALL_SEGMENT = 2 * MIB
PACKED = 10 * MIB  # requests below this are packed into segments of 20 MiB
PACKED_SEGMENT = 20 * MIB
ROUNDING = 2 * MIB  # of larger segments


class OutOfMemory(RuntimeError):
    """The card has no room for another segment, unused ones given back."""


class Block:
    """A piece of a segment, or a whole one. ``before`` and ``after`` are its neighbors in the segment."""

    __slots__ = ("address", "after", "before", "free", "size", "small")

    def __init__(self, address: int, size: int, small: bool) -> None:
        self.address, self.size, self.small = address, size, small
        self.before: Block | None = None
        self.after: Block | None = None
        self.free = False


class CachingAllocator:
    """The rules of `torch.cuda`'s allocator, as it is set by default, on one stream.

    - A request is rounded up to 512 bytes. Those up to 1 MiB and those above have segments of their own.
    - It gets the smallest free block that it fits into. What is left over is split off, but where large
      requests are served not if it is 1 MiB or less.
    - Where there is no such block, a new segment comes from the card: 2 MiB for small requests, 20 MiB for
      those below 10 MiB, else the request itself in whole 2 MiB.
    - A freed block is joined with free neighbors and kept. Only when the card has no room for a segment are
      all segments given back that are free as a whole; if that does not help, memory is out.

    Args:
        limit: bytes that may come from the card; None: as many as it takes.

    Attributes:
        reserved: bytes of all segments.
        allocated: bytes of all blocks in use.
        highest_reserved, highest_allocated: the most that they have been.
    """

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit
        self.reserved = self.allocated = self.highest_reserved = self.highest_allocated = 0
        # small blocks and large ones, each from the smallest to the largest
        self._free: dict[bool, list[tuple[int, int, Block]]] = {True: [], False: []}
        self._segments: list[Block] = []  # the first block of each
        self._end = 0  # of the address space in use

    def allocate(self, size: int) -> Block:
        """A block of at least so many bytes, 1 or more.

        Raises:
            OutOfMemory: if the limit leaves no room for it.
        """
        size = -(-size // SMALLEST) * SMALLEST
        small = size <= SMALL
        free = self._free[small]
        i = bisect_left(free, (size, -1))
        block = free.pop(i)[2] if i < len(free) else self._segment(size, small)
        left = block.size - size
        if left >= SMALLEST if small else left > SMALL:
            rest = Block(block.address + size, left, small)
            rest.before, rest.after = block, block.after
            if rest.after is not None:
                rest.after.before = rest
            block.after, block.size = rest, size
            self._keep(rest)
        block.free = False
        self.allocated += block.size
        self.highest_allocated = max(self.highest_allocated, self.allocated)
        return block

    def free(self, block: Block) -> None:
        """Give a block back."""
        self.allocated -= block.size
        before, after = block.before, block.after
        if before is not None and before.free:
            self._take(before)
            block = self._join(before, block)
        if after is not None and after.free:
            self._take(after)
            block = self._join(block, after)
        self._keep(block)

    def segments(self) -> list[list[Block]]:
        """All blocks, used and free, of one segment after the other."""
        found = []
        for block in self._segments:
            found.append([block])
            while (block := block.after) is not None:
                found[-1].append(block)
        return found

    def _segment(self, size: int, small: bool) -> Block:
        if small:
            segment = SMALL_SEGMENT
        else:
            segment = PACKED_SEGMENT if size < PACKED else -(-size // ROUNDING) * ROUNDING
        if self.limit is not None and self.reserved + segment > self.limit:
            self._give_back()
            if self.reserved + segment > self.limit:
                raise OutOfMemory(
                    f"{self.reserved / MIB:.0f} MiB are reserved, {self.allocated / MIB:.0f} of them in use; "
                    f"{segment / MIB:.0f} more do not fit into {self.limit / MIB:.0f} MiB."
                )
        block = Block(self._end, segment, small)
        self._segments.append(block)
        self._end += segment
        self.reserved += segment
        self.highest_reserved = max(self.highest_reserved, self.reserved)
        return block

    def _give_back(self) -> None:
        for free in self._free.values():
            whole = [entry for entry in free if entry[2].before is None and entry[2].after is None]
            for entry in whole:
                free.remove(entry)
                self._segments.remove(entry[2])
                self.reserved -= entry[0]

    def _keep(self, block: Block) -> None:
        block.free = True
        insort(self._free[block.small], (block.size, block.address, block))

    def _take(self, block: Block) -> None:
        free = self._free[block.small]
        del free[bisect_left(free, (block.size, block.address))]

    @staticmethod
    def _join(left: Block, right: Block) -> Block:
        left.size += right.size
        left.after = right.after
        if left.after is not None:
            left.after.before = left
        return left


@dataclass(frozen=True)
class Requests:
    """What a step asks of the allocator.

    Attributes:
        sizes: bytes of each storage.
        fixed: so many of them, from the first on, live before the step and after it.
        order: what happens in the step: ``i`` makes storage i, ``~i`` frees it.
    """

    sizes: Sequence[int]
    fixed: int
    order: Sequence[int]

    def replay(
        self,
        limit: int | None = None,
        *,
        steps: int = 3,
        watch: Callable[[CachingAllocator, Block], object] | None = None,
    ) -> CachingAllocator:
        """Some steps one after the other; between them all is freed that is not fixed.

        Args:
            limit: bytes that may come from the card; None: as many as it takes.
            steps: how many. The first ones leave segments behind that the next ones use.
            watch: called after each request with the allocator and the new block.

        Raises:
            OutOfMemory: if they do not fit within the limit.
        """
        allocator = CachingAllocator(limit)
        live: dict[int, Block] = {}

        def allocate(i: int) -> None:
            if self.sizes[i]:  # an empty tensor needs no block
                live[i] = allocator.allocate(self.sizes[i])
                if watch is not None:
                    watch(allocator, live[i])

        for i in range(self.fixed):
            allocate(i)
        for _ in range(steps):
            live.clear()
            for i in self.order:
                if i >= 0:
                    allocate(i)
                elif ~i in live:
                    allocator.free(live.pop(~i))
            for block in live.values():
                allocator.free(block)
        return allocator

    @cached_property
    def reserved(self) -> int:
        """Bytes that come from the card where there is no limit."""
        return self.replay().highest_reserved

    def fits(self, gib: float) -> bool:
        """Whether so many GiB (2^30 bytes) of the card are enough."""
        try:
            self.replay(int(gib * 2**30))
        except OutOfMemory:
            return False
        return True
