"""Compiled KV block pool with vLLM's prefix cache (`v1/core/block_pool.py`, `v1/core/single_type_kv_cache_manager.py`).

vLLM keeps one free list: freed blocks without content go to its front, cached ones to its tail, allocation pops the front.
So blocks without content always precede cached ones, and since they are interchangeable a *stack* of blank blocks plus a
doubly linked LRU *list* of cached ones is the same thing, without touching blocks that were never used.
"""

from __future__ import annotations

from ..jit import inlined, kernel

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
def lru_remove(state, e, replica, b):
    """Take block `b` out of the list of free cached blocks."""
    block = state.block[e]
    previous, following = block[b].previous, block[b].next
    if previous >= 0:
        block[previous].next = following
    else:
        replica.lru_head = following
    if following >= 0:
        block[following].previous = previous
    else:
        replica.lru_tail = previous


@inlined
def pop_block(state, e, spec, replica):
    """Take a free block: one without content if there is any, else evict the least recently used cached one."""
    if replica.blank > 0:
        replica.blank -= 1
        b = state.blank[e, spec.block_base + replica.blank]
    elif replica.virgin < spec.blocks:
        b = spec.block_base + replica.virgin
        replica.virgin += 1
        state.block[e, b].hash = 0
    else:
        b = replica.lru_head
        lru_remove(state, e, replica, b)
        forget_block(state, e, spec, b)
    state.block[e, b].ref = 1
    replica.free -= 1
    return b


@kernel
def allocate_blocks(state, e, spec, replica, arena, computed, after):
    """Extend a call's table from `computed` to `after` tokens with free blocks."""
    for k in range((computed + 15) >> 4, (after + 15) >> 4):
        state.arena_block[e, arena + k] = pop_block(state, e, spec, replica)


@kernel
def register_blocks(state, e, spec, arena, begin, end):
    """Make blocks `begin` to `end` of a call's table hittable.

    That happens when they are scheduled, not when they are computed (`KVCacheManager.allocate_slots`).
    """
    for k in range(begin, end):
        register_block(state, e, spec, state.arena_hash[e, arena + k], state.arena_block[e, arena + k])


@kernel
def release_table(state, e, spec, replica, arena, blocks):
    """Return a call's blocks, last one first, so that a chain's tail is evicted before its head."""
    table, block = state.arena_block[e], state.block[e]
    for k in range(blocks - 1, -1, -1):
        b = table[arena + k]
        block[b].ref -= 1
        if block[b].ref > 0:
            continue
        replica.free += 1
        if block[b].hash == 0:
            state.blank[e, spec.block_base + replica.blank] = b
            replica.blank += 1
            continue
        block[b].next = -1
        block[b].previous = replica.lru_tail
        if replica.lru_tail >= 0:
            block[replica.lru_tail].next = b
        else:
            replica.lru_head = b
        replica.lru_tail = b


@inlined
def longest_hit(state, e, spec, arena, tokens):
    """Return (cached blocks at the head of the call, how many of them are free).

    At most (tokens - 1) // 16 blocks: the last token is always computed (`KVCacheManager.get_computed_blocks`).
    """
    hits = free = 0
    for k in range((tokens - 1) >> 4):
        b = find_block(state, e, spec, state.arena_hash[e, arena + k])
        if b < 0:
            break
        state.arena_block[e, arena + k] = b
        hits += 1
        if state.block[e, b].ref == 0:
            free += 1
    return hits, free


@inlined
def touch_hits(state, e, replica, arena, hits):
    """Take a reference on the first `hits` blocks of a call's table (`BlockPool.touch`)."""
    for k in range(hits):
        b = state.arena_block[e, arena + k]
        if state.block[e, b].ref == 0:
            lru_remove(state, e, replica, b)
            replica.free -= 1
        state.block[e, b].ref += 1


@kernel
def hash_segments(state, e, arena, ids, lengths, count):
    """Fill in the chain hashes of a call whose tokens are `count` segments (content id, length).

    Token p of a segment is the pair (id, p), so a block's content is told by which segments it covers from where to where;
    that, with the hash of all blocks before, is what vLLM's chain over token ids tells apart (`hash_block_tokens`).
    Returns the number of full blocks.
    """
    parent = 1
    block_fill = 0
    blocks = 0
    for s in range(count):
        position = 0
        while position < lengths[s]:
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
