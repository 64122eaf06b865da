"""Tools and graders of a live episode, in threads of their own: a decision waits for neither."""

from __future__ import annotations

import queue
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from ...grading.grade import Grade
from ...grading.tools import ToolResult
from .progress import LiveRequest


class Workers:
    """Runs tools and graders; what comes of them goes into a queue, for the thread that decides.

    Args:
        threads: for tools, and as many for graders.
        events: gets ``("tool", request, node, result or error, begin, end)``, times of the performance counter, and
            ``("grade", request, grade or error)``.

    Attributes:
        tools: tools whose event was not taken yet.
        grades: the same of graders.
    """

    def __init__(self, threads: int, events: queue.SimpleQueue[tuple[Any, ...]]) -> None:
        self.tools = self.grades = 0
        self._events = events
        self._tools = ThreadPoolExecutor(threads, "aragog-tool")
        self._graders = ThreadPoolExecutor(threads, "aragog-grader")

    def run_tool(self, request: LiveRequest, node: int) -> None:
        """Have a tool stage run on what the request's stages wrote so far."""
        self.tools += 1
        self._tools.submit(self._run, request, node, dict(request.outputs))

    def _run(self, request: LiveRequest, node: int, outputs: dict[int, str]) -> None:
        begin_s = time.perf_counter()
        result: ToolResult | Exception
        try:
            result = request.runtime.run_tool(node, request.record, outputs)
        except Exception as error:
            result = error
        self._events.put(("tool", request, node, result, begin_s, time.perf_counter()))

    def grade(self, request: LiveRequest) -> None:
        """Have an answer graded; the request is served, its user does not wait for this."""
        self.grades += 1
        self._graders.submit(request.runtime.grade, request.record, dict(request.outputs)).add_done_callback(
            lambda future: self._graded(request, future)
        )

    def _graded(self, request: LiveRequest, future: Future[Grade]) -> None:
        if not future.cancelled():
            self._events.put(("grade", request, future.exception() or future.result()))

    def close(self) -> None:
        """Begin nothing more; what runs is not waited for."""
        self._tools.shutdown(wait=False, cancel_futures=True)
        self._graders.shutdown(wait=False, cancel_futures=True)
