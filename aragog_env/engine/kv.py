"""Compiled KV block pool with vLLM's prefix cache (`v1/core/block_pool.py`, `v1/core/single_type_kv_cache_manager.py`).

vLLM keeps one free list: freed blocks without content go to its front, cached ones to its tail, allocation pops the front.
So blocks without content always precede cached ones, and since they are interchangeable a *count* of them plus a doubly
linked LRU *list* of cached ones is the same thing.

Most blocks can never be hit by another call: nobody else's prompt begins like that. These *private* blocks have no record
and no hash. While a call runs they are a number; when it ends (or is preempted) they stand in the LRU list as one entry,
the call itself, which eviction eats from the end, and from which the call takes them back when it resumes. Only the leading
`shared` blocks of a call are kept one by one. How many those are is known from the contents of all prompts (see
`progress._hash_prompt`, `open_loop.shared_blocks`), and any larger number gives the same results, slower.

Entries of the LRU list are numbers: block b is b, the private blocks of call c are -1 - c.
"""

from __future__ import annotations

import numpy as np

from ..jit import inlined, kernel
from .state import NOBODY

# mypy: disable-error-code="no-untyped-def"


@inlined
def mix(value, salt):
    """Return a 64-bit hash of two 64-bit numbers (splitmix64's finaliser over their sum)."""
    x = value + salt * -7046029254386353131
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * -4658895280553007687
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * -7723592293110705685
    return x ^ ((x >> 31) & 0x1FFFFFFFF)


@inlined
def bucket_of(spec, key):
    """Return the hash bucket of `key`; its lowest bit is always set, so higher ones choose."""
    return spec.bucket_base + ((key >> 5) & spec.bucket_mask)


@inlined
def find_block(state, e, spec, key):
    """Return the oldest block registered under `key`, or -1 (`BlockHashToBlockMap.get_one_block`).

    New blocks go to the front of their bucket, so the last match is the oldest.
    """
    found = -1
    b = state.bucket[e, bucket_of(spec, key)]
    while b >= 0:
        if state.block[e, b].hash == key:
            found = b
        b = state.block[e, b].chain
    return found


@inlined
def register_block(state, e, spec, key, b):
    """Make block `b` hittable under `key`."""
    slot = bucket_of(spec, key)
    state.block[e, b].hash = key
    state.block[e, b].chain = state.bucket[e, slot]
    state.bucket[e, slot] = b


@inlined
def forget_block(state, e, spec, b):
    """Drop the content of block `b` (`BlockPool._maybe_evict_cached_block`)."""
    block = state.block[e]
    slot = bucket_of(spec, block[b].hash)
    here = state.bucket[e, slot]
    if here == b:
        state.bucket[e, slot] = block[b].chain
    else:
        while block[here].chain != b:
            here = block[here].chain
        block[here].chain = block[b].chain
    block[b].hash = 0


@inlined
def _link(state, e, replica, before, after):
    """Make `after` follow `before` in the LRU list."""
    if before == NOBODY:
        replica.lru_head = after
    elif before >= 0:
        state.block[e, before].following = after
    else:
        state.call[e, -1 - before].following = after
    if after == NOBODY:
        replica.lru_tail = before
    elif after >= 0:
        state.block[e, after].previous = before
    else:
        state.call[e, -1 - after].previous = before


@inlined
def _append(state, e, replica, entry):
    """Put an entry at the tail of the LRU list."""
    _link(state, e, replica, np.int64(replica.lru_tail), entry)
    _link(state, e, replica, entry, np.int64(NOBODY))


@inlined
def _take_out(state, e, replica, entry):
    """Take an entry out of the LRU list."""
    if entry >= 0:
        before, after = np.int64(state.block[e, entry].previous), np.int64(state.block[e, entry].following)
    else:
        c = -1 - entry
        before, after = np.int64(state.call[e, c].previous), np.int64(state.call[e, c].following)
    _link(state, e, replica, before, after)


@inlined
def _drop_record(state, e, spec, replica, b):
    """Return the record of block `b`, which has no content any more."""
    state.spare[e, spec.block_base + replica.spare] = b
    replica.spare += 1


@kernel
def _evict(state, e, spec, replica, count):
    """Evict the `count` least recently used cached blocks."""
    replica.cached -= count
    while count > 0:
        entry = np.int64(replica.lru_head)
        if entry < 0:
            c = -1 - entry
            taken = min(count, state.call[e, c].kept)
            state.call[e, c].kept -= taken
            count -= taken
            if state.call[e, c].kept > 0:
                return
            _take_out(state, e, replica, entry)
        else:
            _take_out(state, e, replica, entry)
            forget_block(state, e, spec, entry)
            _drop_record(state, e, spec, replica, entry)
            count -= 1


@inlined
def take_private(state, e, spec, replica, count):
    """Take `count` free blocks that nobody will ask for by name: first those without content."""
    lacking = count - (replica.free - replica.cached)
    replica.free -= count
    if lacking > 0:
        _evict(state, e, spec, replica, lacking)


@inlined
def _take_shared(state, e, spec, replica):
    """Take a free block and give it a record."""
    take_private(state, e, spec, replica, np.int64(1))
    if replica.spare > 0:
        replica.spare -= 1
        b = state.spare[e, spec.block_base + replica.spare]
    else:
        b = spec.block_base + replica.virgin
        replica.virgin += 1
    state.block[e, b].hash = 0
    state.block[e, b].ref = 1
    return b


@kernel
def allocate_blocks(state, e, spec, replica, c, computed, after):
    """Extend the table of call `c` from `computed` to `after` tokens with free blocks."""
    arena, shared = state.call[e, c].arena, state.call[e, c].shared
    begin, end = (computed + 15) >> 4, (after + 15) >> 4
    for k in range(begin, min(end, shared)):
        state.arena_block[e, arena + k] = _take_shared(state, e, spec, replica)
    private = end - max(begin, shared)
    if private > 0:
        take_private(state, e, spec, replica, private)


@kernel
def register_blocks(state, e, spec, c, begin, end):
    """Make blocks `begin` to `end` of a call's table hittable.

    That happens when they are scheduled, not when they are computed (`KVCacheManager.allocate_slots`).
    """
    arena = state.call[e, c].arena
    for k in range(begin, min(end, state.call[e, c].shared)):
        register_block(state, e, spec, state.arena_hash[e, arena + k], state.arena_block[e, arena + k])


@kernel
def release_table(state, e, spec, replica, c, computed):
    """Return the blocks of call `c`, which has `computed` tokens, last one first: a chain is evicted from its tail."""
    arena, shared = state.call[e, c].arena, state.call[e, c].shared
    blocks, full = (computed + 15) >> 4, computed >> 4
    if blocks > shared:
        replica.free += blocks - shared
        if full > shared:
            state.call[e, c].kept = full - shared
            replica.cached += full - shared
            _append(state, e, replica, np.int64(-1 - c))
    table, block = state.arena_block[e], state.block[e]
    for k in range(min(blocks, shared) - 1, -1, -1):
        b = np.int64(table[arena + k])
        block[b].ref -= 1
        if block[b].ref > 0:
            continue
        replica.free += 1
        if block[b].hash == 0:
            _drop_record(state, e, spec, replica, b)
        else:
            replica.cached += 1
            _append(state, e, replica, b)


@inlined
def longest_hit(state, e, spec, c, tokens):
    """Return (cached blocks at the head of call `c`, how many of them are free).

    At most (tokens - 1) // 16 blocks: the last token is always computed (`KVCacheManager.get_computed_blocks`).
    """
    arena, shared = state.call[e, c].arena, state.call[e, c].shared
    most = (tokens - 1) >> 4
    hits = free = 0
    for k in range(min(most, shared)):
        b = find_block(state, e, spec, state.arena_hash[e, arena + k])
        if b < 0:
            break
        state.arena_block[e, arena + k] = b
        hits += 1
        if state.block[e, b].ref == 0:
            free += 1
    if hits == shared:
        # Its own private blocks, if it was preempted: they are evicted before the shared ones that they follow.
        own = min(state.call[e, c].kept, most - shared)
        hits += own
        free += own
    return hits, free


@inlined
def touch_hits(state, e, replica, c, hits):
    """Take a reference on the first `hits` blocks of call `c` (`BlockPool.touch`)."""
    arena, shared = state.call[e, c].arena, state.call[e, c].shared
    for k in range(min(hits, shared)):
        b = np.int64(state.arena_block[e, arena + k])
        if state.block[e, b].ref == 0:
            _take_out(state, e, replica, b)
            replica.free -= 1
            replica.cached -= 1
        state.block[e, b].ref += 1
    own = hits - shared
    if own > 0:
        replica.free -= own
        replica.cached -= own
        state.call[e, c].kept -= own
        if state.call[e, c].kept == 0:
            _take_out(state, e, replica, np.int64(-1 - c))


@kernel
def hash_segments(state, e, arena, ids, lengths, count, most):
    """Fill in the chain hashes of a call's first `most` blocks; its tokens are `count` segments (content id, length).

    Token p of a segment is the pair (id, p), so a block's content is told by which segments it covers from where to where;
    that, with the hash of all blocks before, is what vLLM's chain over token ids tells apart (`hash_block_tokens`).
    Returns the number of blocks hashed.
    """
    parent = 1
    block_fill = 0
    blocks = 0
    for s in range(count):
        position = 0
        while position < lengths[s]:
            if blocks >= most:
                return blocks
            take = min(16 - block_fill, lengths[s] - position)
            # Odd multiples of small numbers are far apart, so content and position share one salt without collisions.
            parent = mix(parent, ids[s] * -7070675565921424023 + position * 32 + take)
            block_fill += take
            position += take
            if block_fill == 16:
                state.arena_hash[e, arena + blocks] = parent | 1
                blocks += 1
                block_fill = 0
    return blocks
