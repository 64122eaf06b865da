"""What an engine is, what it is asked to do and what comes out: shared by both engines."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import SpecError, did_you_mean

SCHEDULING_POLICIES = ("fcfs", "priority")


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """The limits of one vLLM server, under vLLM's own names (`config/scheduler.py`, `config/cache.py`).

    Raises:
        SpecError: if a limit is not positive, or if one sequence of `max_model_len` tokens does not fit the
            KV cache (such a server refuses to start,
            `v1/core/kv_cache_utils.py:_check_enough_kv_cache_memory`).
    """

    max_num_seqs: int = 256
    """Most requests in the running list at once."""
    max_num_batched_tokens: int = 2048
    """Token budget of one iteration."""
    max_model_len: int = 16384
    """Most tokens, prompt and output, of one request."""
    num_gpu_blocks: int = 27000
    """KV blocks as vLLM counts them; block 0 is the null block and never serves a request."""
    block_size: int = 16
    """Tokens in a KV block."""
    enable_prefix_caching: bool = True
    scheduling_policy: str = "fcfs"
    """``fcfs`` or ``priority`` (smaller `EngineRequest.priority` first)."""
    async_scheduling: bool = False
    """Whether the next iteration is scheduled while the present one still runs."""

    def __post_init__(self) -> None:
        """Refuse a server that vLLM would not start."""
        for name in (
            "max_num_seqs",
            "max_num_batched_tokens",
            "max_model_len",
            "num_gpu_blocks",
            "block_size",
        ):
            if getattr(self, name) < 1:
                raise SpecError(f"{name} must be at least 1, not {getattr(self, name)}", where="engine")
        if self.scheduling_policy not in SCHEDULING_POLICIES:
            raise SpecError(
                f"unknown scheduling policy '{self.scheduling_policy}'."
                + did_you_mean(self.scheduling_policy, SCHEDULING_POLICIES),
                where="engine",
            )
        if self.usable_blocks < self.blocks_for(self.max_model_len):
            raise SpecError(
                f"a sequence of max_model_len={self.max_model_len} tokens needs "
                f"{self.blocks_for(self.max_model_len)} KV blocks but only {self.usable_blocks} are usable; "
                "lower max_model_len or raise num_gpu_blocks",
                where="engine",
            )

    @property
    def usable_blocks(self) -> int:
        """Blocks that can hold tokens: all but the null block (`v1/core/block_pool.py:BlockPool`)."""
        return self.num_gpu_blocks - 1

    def blocks_for(self, tokens: int) -> int:
        """Return how many blocks `tokens` tokens occupy."""
        return -(-tokens // self.block_size)


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One call to a server. Times are integer picoseconds; token contents are symbolic.

    The prompt is a sequence of segments (content_id, length); token p of a segment is the pair (content_id,
    p), and equal pairs are equal tokens. The output is one more segment, so a later prompt that contains
    ``(output_content_id, output_tokens)`` repeats it.
    """

    request_id: int
    arrival_ps: int
    """Submission time; not read when `after` is given."""
    prompt: tuple[tuple[int, int], ...]
    output_tokens: int
    output_content_id: int
    priority: int = 0
    """Smaller is served first; only the ``priority`` policy looks at it."""
    after: int | None = None
    """Submit this request `delay_ps` after the request with this id finished (agents: the next turn)."""
    delay_ps: int = 0

    @property
    def prompt_tokens(self) -> int:
        """Length of the prompt."""
        return sum(length for _, length in self.prompt)

    def check(self, config: EngineConfig) -> None:
        """Raise SpecError if a server with `config` would reject this request."""
        where = f"request {self.request_id}"
        if self.prompt_tokens < 1 or self.output_tokens < 1:
            raise SpecError(
                f"a request needs at least one prompt and one output token, not {self.prompt_tokens} and "
                f"{self.output_tokens}",
                where=where,
            )
        if self.prompt_tokens + self.output_tokens > config.max_model_len:
            raise SpecError(
                f"{self.prompt_tokens} prompt + {self.output_tokens} output tokens exceed "
                f"max_model_len={config.max_model_len}",
                where=where,
            )


@dataclass(frozen=True, slots=True)
class CallTimes:
    """What became of one request; times in picoseconds."""

    request_id: int
    arrival_ps: int
    start_ps: int
    """Start of the first iteration that computed some of it."""
    first_token_ps: int
    """End of the iteration that sampled its first token."""
    finish_ps: int
    """End of the iteration that sampled its last token."""
    preemptions: int
    cached_tokens: int
    """Prompt tokens found in the prefix cache at its first admission."""


@dataclass(frozen=True, slots=True)
class Iteration:
    """One engine iteration, as decided by the scheduler."""

    index: int
    scheduled_ps: int
    """When the scheduler decided it; earlier than `start_ps` under asynchronous scheduling."""
    start_ps: int
    end_ps: int
    tokens: dict[int, int]
    """Scheduled tokens by request id, in the scheduler's order."""
    cached: dict[int, int]
    """Tokens computed before this iteration, by request id."""
    sampled: frozenset[int]
    """Requests that get a token at the end."""
    decodes: int
    """Requests that generate: one new token, everything before it computed."""
    kv_tokens: int
    """Sum of the decodes' contexts, the new token included."""
    preempted: tuple[int, ...]
    """Requests preempted since the previous iteration was scheduled, in order."""
    running: int
    """Length of the running list after scheduling."""
    waiting: int
    free_blocks: int

    @property
    def duration_ps(self) -> int:
        """How long the iteration takes."""
        return self.end_ps - self.start_ps


@dataclass(frozen=True, slots=True)
class EngineRun:
    """The outcome of a whole run."""

    calls: tuple[CallTimes, ...]
    """One per request, ordered by request id."""
    iterations: int
    log: tuple[Iteration, ...] = ()
    """Every iteration, if it was asked for."""
