"""The other side of `sandbox.run_isolated`: a process of its own that supervises one more, which runs the job.

Started by path in a fresh interpreter, so it imports the standard library only. It reads one line of JSON, gives up what
it can (namespaces), forks the worker, and prints one line of JSON. The worker gives up the rest (limits, capabilities,
files, system calls) before it touches what a model wrote. The supervisor never runs anything untrusted: it watches the
clock, the worker, and its own standard input, whose end means that whoever asked is gone.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import json
import os
import resource
import secrets
import select
import signal
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

_NAMESPACES: Final = {"user": 0x10000000, "network": 0x40000000, "processes": 0x20000000, "ipc": 0x08000000}
"""CLONE_NEWUSER, CLONE_NEWNET, CLONE_NEWPID, CLONE_NEWIPC."""
_SET_DEATH_SIGNAL: Final = 1
_SET_DUMPABLE: Final = 4
_SET_SECCOMP: Final = 22
_SECCOMP_FILTER: Final = 2
_SET_NO_NEW_PRIVS: Final = 38
"""PR_SET_* of include/uapi/linux/prctl.h."""
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_LANDLOCK_ALL: Final = (1 << 13) - 1
"""Every access right of Landlock's first version: what is not allowed below is refused."""
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
_CHUNK: Final = 1 << 16
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


class _Refused(Exception):
    """The worker could not be shut in, so nothing was run."""


def main() -> None:
    """Serve one request."""
    request = json.loads(sys.stdin.buffer.readline())
    layers = _unshare() if request["namespaces"] else []
    nonce = secrets.token_hex(16)
    started = time.monotonic()
    reading, writing = os.pipe()
    worker = os.fork()
    if worker == 0:
        os.close(reading)
        _worker(request, layers, writing, nonce)
    os.close(writing)
    verdict = _supervise(worker, reading, request, nonce)
    verdict["wall_s"] = time.monotonic() - started
    sys.stdout.write(json.dumps(verdict))
    sys.stdout.flush()


def _unshare() -> list[str]:
    """Leave the namespaces of the caller, as many as this kernel lets us; return which."""
    wanted = list(_NAMESPACES)
    for names in (wanted, wanted[1:]):  # a container's root may not nest users but may have the right to the rest
        if _LIBC.unshare(sum(_NAMESPACES[name] for name in names)) == 0:
            return [f"{name} namespace" for name in names]
    return []


def _supervise(worker: int, reading: int, request: dict[str, Any], nonce: str) -> dict[str, Any]:
    """Wait for the worker, at most as long as it may take, and return what became of it."""
    deadline = time.monotonic() + request["wall_s"]
    received = bytearray()
    why = ""
    poll = select.poll()
    poll.register(reading, select.POLLIN)
    poll.register(sys.stdin.fileno(), select.POLLIN)
    while not why:
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            why = "timeout"
            break
        for descriptor, _ in poll.poll(left_s * 1000):
            if descriptor != reading:
                why = "abandoned"
                break
            chunk = os.read(reading, _CHUNK)
            received += chunk
            if not chunk:
                why = "closed"
            elif len(received) > request["output_bytes"]:
                why = "too much output"
    # The worker alone holds the other end. Where it closed that without ending, it may not go on either.
    if why == "closed" and not _ends_within(worker, min(1.0, max(0.0, deadline - time.monotonic()))):
        why = "timeout"
    os.kill(worker, signal.SIGKILL)  # not yet reaped, so the number is still its own
    _, status, usage = os.wait4(worker, 0)
    if why == "abandoned":
        with contextlib.suppress(OSError):
            os.rmdir(os.getcwd())  # nobody else is left to do it
    return _verdict(bytes(received), why, status, usage, request, nonce)


def _ends_within(worker: int, seconds: float) -> bool:
    """Return whether the worker has ended, without reaping it."""
    deadline = time.monotonic() + seconds
    while os.waitid(os.P_PID, worker, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True


def _verdict(
    received: bytes, why: str, status: int, usage: resource.struct_rusage, request: dict[str, Any], nonce: str
) -> dict[str, Any]:
    cpu_s = usage.ru_utime + usage.ru_stime
    ended: dict[str, Any] = {"cpu_s": cpu_s, "layers": [], "value": None}
    head, _, body = received.partition(b"\n")
    if why == "closed" and os.WIFEXITED(status) and head == nonce.encode():
        try:
            return {**ended, **json.loads(body)}
        except ValueError:
            pass
    if why == "timeout":
        return {**ended, "status": "timeout", "detail": f"stopped after {request['wall_s']:g} s"}
    if why == "too much output":
        return {**ended, "status": "error", "detail": f"reported more than {request['output_bytes']} bytes"}
    if os.WIFSIGNALED(status) and why == "closed":
        number = os.WTERMSIG(status)
        if number == signal.SIGXCPU or (number == signal.SIGKILL and cpu_s >= request["cpu_s"]):
            return {**ended, "status": "timeout", "detail": f"stopped after {request['cpu_s']} s of processor time"}
        return {**ended, "status": "error", "detail": f"killed by {signal.Signals(number).name}"}
    code = os.waitstatus_to_exitcode(status)
    return {**ended, "status": "error", "detail": f"ended without a verdict (exit code {code})"}


def _worker(request: dict[str, Any], layers: list[str], writing: int, nonce: str) -> None:
    """Shut this process in, run the job, report, end. Never returns."""
    write, leave, dumps = os.write, os._exit, json.dumps  # a program may replace them in their modules

    def report(verdict: dict[str, Any]) -> None:
        message = memoryview(f"{nonce}\n{dumps(verdict)}".encode())
        while message:
            message = message[write(writing, message) :]

    try:
        _LIBC.prctl(_SET_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
        _keep_only(writing)
        prepare, run = _job(request)
        state = prepare(request["payload"])
        layers = [*layers, *_shut_in(request)]
        report({"layers": layers, **run(state)})
    except _Refused as error:
        report({"layers": layers, "status": "refused", "detail": str(error)})
    except BaseException as error:
        report({"layers": layers, "status": "error", "detail": f"{type(error).__name__}: {error}"[:300]})
    finally:
        leave(0)


def _job(request: dict[str, Any]) -> tuple[Callable[[Any], Any], Callable[[Any], dict[str, Any]]]:
    """Return the two halves of a job: before and after the door is shut."""
    spec = importlib.util.spec_from_file_location("aragog_job", request["job"])
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.prepare, module.run


def _keep_only(writing: int) -> None:
    """Close every file but the report's; standard streams lead nowhere."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.closerange(3, writing)
    os.closerange(writing + 1, 4096)


def _shut_in(request: dict[str, Any]) -> list[str]:
    """Give up rights, files and system calls, for good; return what did it.

    Raises:
        _Refused: system calls cannot be filtered here, and so nothing would stop the program.
    """
    cpu_s, memory_bytes = request["cpu_s"], request["memory_bytes"]
    for which, value in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_DATA, memory_bytes),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        _limit(which, value, value)
    # The soft limit's signal can be caught by the program; a second later the hard limit kills.
    _limit(resource.RLIMIT_CPU, cpu_s, cpu_s + 1)
    done = ["resource limits"]
    if _drop_capabilities():
        done.append("no capabilities")
    if _LIBC.prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise _Refused("this kernel has no 'no_new_privs'")
    _LIBC.prctl(_SET_DUMPABLE, 0, 0, 0, 0)
    if _landlock():
        done.append("Landlock")
    _seccomp(bytes.fromhex(request["filter"]))
    return [*done, "seccomp"]


def _limit(which: int, soft: int, hard: int) -> None:
    ceiling = resource.getrlimit(which)[1]
    if ceiling != resource.RLIM_INFINITY:
        soft, hard = min(soft, ceiling), min(hard, ceiling)
    resource.setrlimit(which, (soft, hard))


def _drop_capabilities() -> bool:
    """Empty the effective, permitted and inheritable sets, so that root is a user like any other."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
    return bool(_LIBC.capset(header, (ctypes.c_uint32 * 6)()) == 0)


def _landlock() -> bool:
    """Let nothing be read but what Python itself needs; writing is refused by the system call filter anyway."""
    handled = ctypes.c_uint64(_LANDLOCK_ALL)
    ruleset = _LIBC.syscall(
        ctypes.c_long(_LANDLOCK_CREATE), ctypes.byref(handled), ctypes.c_size_t(8), ctypes.c_uint32(0)
    )
    if ruleset < 0:
        return False
    for path in (sys.base_prefix, sys.base_exec_prefix, *sys.path, "/usr", "/lib", "/lib64", *_DEVICES, os.getcwd()):
        _allow_reading(ruleset, Path(path))
    failed = _LIBC.syscall(ctypes.c_long(_LANDLOCK_RESTRICT), ctypes.c_int(ruleset), ctypes.c_uint32(0))
    os.close(ruleset)
    return not failed


_DEVICES: Final = ("/dev/null", "/dev/urandom", "/etc/ld.so.cache", "/etc/localtime")


def _allow_reading(ruleset: int, path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)  # type: ignore[attr-defined,unused-ignore]
    except OSError:
        return
    rights = _READ_FILE | (_READ_DIR if stat.S_ISDIR(os.fstat(descriptor).st_mode) else 0)
    beneath = rights.to_bytes(8, sys.byteorder) + descriptor.to_bytes(4, sys.byteorder)
    _LIBC.syscall(ctypes.c_long(_LANDLOCK_ADD), ctypes.c_int(ruleset), ctypes.c_int(1), beneath, ctypes.c_uint32(0))
    os.close(descriptor)


class _Program(ctypes.Structure):
    """`struct sock_fprog`."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def _seccomp(code: bytes) -> None:
    program = _Program(len(code) // 8, code)
    if _LIBC.prctl(_SET_SECCOMP, _SECCOMP_FILTER, ctypes.byref(program), 0, 0):
        reason = os.strerror(ctypes.get_errno())
        raise _Refused(f"this kernel or container takes no system call filter ({reason})")


if __name__ == "__main__":
    main()
