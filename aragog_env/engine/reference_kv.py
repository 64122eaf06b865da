"""The KV block pool of the reference engine: allocation, reference counts, prefix cache, LRU eviction.

It mirrors vLLM 0.32 for a model with one full-attention KV group (`v1/core/block_pool.py`,
`kv_cache_manager.py`, `single_type_kv_cache_manager.py:FullAttentionManager`,
`kv_cache_utils.py:FreeKVCacheBlockQueue`):

* One ordered free list. Allocation pops its head and drops the popped block's content from the cache.
* A request gives its blocks back in reverse order, so that the tail of a chain is evicted before its head.
  Blocks with content go to the tail of the list (evicted last), the others to its front (reused first). A
  block that other requests still use stays out of the list.
* A free block keeps its content until it is popped; a hit takes it out of the list again.
* Content is named by a chain hash over (parent, 16 tokens); only full blocks have one. Equal content computed
  twice is registered twice and a hit takes the older block (`BlockHashToBlockMap`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from .config import EngineConfig, EngineRequest

BlockKey = int
"""Name of a block's content: equal keys mean equal tokens in the block and in everything before it."""


class ContentNames:
    """Numbers every distinct chain of blocks, as vLLM's chain hash does (`kv_utils:hash_block_tokens`)."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._names: dict[tuple[BlockKey, tuple[tuple[int, int, int], ...]], BlockKey] = {}

    def keys_of(self, request: EngineRequest) -> list[BlockKey]:
        """Return the keys of all full blocks of the request's prompt and output together."""
        keys: list[BlockKey] = []
        parent: BlockKey = -1
        block: list[tuple[int, int, int]] = []  # runs (content, first offset, length)
        room = self._block_size
        for content, length in (*request.prompt, (request.output_content_id, request.output_tokens)):
            offset = 0
            while offset < length:
                take = min(room, length - offset)
                block.append((content, offset, take))
                offset += take
                room -= take
                if room == 0:
                    parent = self._names.setdefault((parent, tuple(block)), len(self._names))
                    keys.append(parent)
                    block, room = [], self._block_size
        return keys


class BlockPool:
    """All KV blocks of one server."""

    def __init__(self, config: EngineConfig) -> None:
        self.caching = config.enable_prefix_caching
        self._references = [0] * config.num_gpu_blocks
        self._content: list[BlockKey | None] = [None] * config.num_gpu_blocks
        # Ordered, with removal from the middle, like vLLM's linked list; block 0 is the null block.
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(1, config.num_gpu_blocks))
        self._cached: dict[BlockKey, list[int]] = {}

    @property
    def free_blocks(self) -> int:
        """Blocks that can be allocated, cached ones that nobody uses included."""
        return len(self._free)

    def longest_hit(self, keys: Sequence[BlockKey], most_blocks: int) -> list[int]:
        """Return the cached blocks of the longest prefix of `keys`, at most `most_blocks` of them."""
        hit: list[int] = []
        if self.caching:
            for key in keys[:most_blocks]:
                if key not in self._cached:
                    break
                hit.append(self._cached[key][0])
        return hit

    def idle_among(self, blocks: Sequence[int]) -> int:
        """Return how many of `blocks` nobody uses: a hit on them takes them out of the free list."""
        return sum(self._references[block] == 0 for block in blocks)

    def touch(self, blocks: Sequence[int]) -> None:
        """Let one more request use `blocks` (`BlockPool.touch`)."""
        for block in blocks:
            if self._references[block] == 0:
                del self._free[block]
            self._references[block] += 1

    def allocate(self, count: int) -> list[int]:
        """Take blocks from the head of the free list; their old content is gone (`get_new_blocks`)."""
        taken = []
        for _ in range(count):
            block, _ = self._free.popitem(last=False)
            self._forget(block)
            self._references[block] = 1
            taken.append(block)
        return taken

    def register(self, block: int, key: BlockKey) -> None:
        """Make a full block hittable (`cache_full_blocks`)."""
        assert self._content[block] is None, "a block is registered once per allocation"
        self._content[block] = key
        self._cached.setdefault(key, []).append(block)

    def free(self, blocks: Sequence[int]) -> None:
        """Give back a request's blocks, listed as the request got them (`single:free`, `free_blocks`)."""
        plain: list[int] = []
        cached: list[int] = []
        for block in reversed(blocks):
            self._references[block] -= 1
            if self._references[block] == 0:
                (plain if self._content[block] is None else cached).append(block)
        # `plain` goes to the front as a whole, so that its first block becomes the head.
        for block in reversed(plain):
            self._free[block] = None
            self._free.move_to_end(block, last=False)
        for block in cached:
            self._free[block] = None

    def _forget(self, block: int) -> None:
        key = self._content[block]
        if key is None:
            return
        holders = self._cached[key]
        holders.remove(block)
        if not holders:
            del self._cached[key]
        self._content[block] = None

    def check(self, held: Sequence[Sequence[int]]) -> None:
        """Assert that free and held blocks add up (for tests). `held` are the block lists of all requests."""
        counts = [0] * len(self._references)
        for blocks in held:
            assert len(set(blocks)) == len(blocks), "a request holds a block twice"
            for block in blocks:
                counts[block] += 1
        assert counts == self._references, "reference counts differ from what requests hold"
        assert set(self._free) == {b for b in range(1, len(counts)) if counts[b] == 0}, "free list differs"
        for key, holders in self._cached.items():
            assert holders and all(self._content[block] == key for block in holders), "cache map differs"
