"""The system calls a graded program may make: a seccomp filter in classic BPF, built without any C library.

The filter is a list of what is allowed: computing, memory, time, reading files, writing to what is already open. All
else fails inside the program with "operation not permitted": sockets, fork and threads, exec, signals to anyone, files
opened for writing, mounts, ptrace, io_uring, bpf, and whatever a newer kernel adds. So the same list stops the network,
fork bombs and writing outside, as root and as a normal user, with no right needed but `no_new_privs`.

Numbers: arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h of Linux; layout of the filter:
include/uapi/linux/seccomp.h and filter.h.
"""

from __future__ import annotations

import errno
import platform
import struct
from dataclasses import dataclass
from typing import Final

_LOAD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
_EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_GREATER: Final = 0x25  # BPF_JMP | BPF_JGT | BPF_K
_ANY_BIT: Final = 0x45  # BPF_JMP | BPF_JSET | BPF_K
_RETURN: Final = 0x06  # BPF_RET | BPF_K
_ALLOW: Final = 0x7FFF0000
_KILL: Final = 0x80000000
_ERRNO: Final = 0x00050000

_NR: Final = 0
"""Offsets in `struct seccomp_data`."""
_ARCH: Final = 4
_ARGUMENTS: Final = 16

_OPEN_FOR_WRITING: Final = 0o1 | 0o2 | 0o100 | 0o1000 | 0o2000
"""O_WRONLY, O_RDWR, O_CREAT, O_TRUNC, O_APPEND (the same on x86-64 and arm64)."""
_HARMLESS_IOCTLS: Final = (0x5401, 0x5413, 0x5450, 0x5451)
"""TCGETS and TIOCGWINSZ (is this a terminal?), FIONCLEX and FIOCLEX."""
_HARMLESS_FCNTLS: Final = (0, 1, 2, 3, 1030)
"""F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_DUPFD_CLOEXEC; not F_SETOWN, which sends signals to others."""
_NEWEST_KNOWN: Final = 450
"""Calls with higher numbers are newer than this list: they fail as on an old kernel, so that libc falls back."""


@dataclass(frozen=True)
class _Machine:
    arch: int
    """AUDIT_ARCH_*"""
    allowed: tuple[int, ...]
    open: int | None
    openat: int
    ioctl: int
    fcntl: int
    prlimit64: int


_X86_64: Final = _Machine(
    arch=0xC000003E,
    allowed=(
        # read write close stat fstat lstat poll lseek mmap mprotect munmap brk rt_sigaction rt_sigprocmask rt_sigreturn
        *(0, 1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
        # pread64 readv writev access pipe select sched_yield mremap mincore madvise dup dup2 nanosleep
        *(17, 19, 20, 21, 22, 23, 24, 25, 27, 28, 32, 33, 35),
        # getitimer alarm setitimer getpid exit uname getdents getcwd readlink umask gettimeofday getrlimit getrusage
        *(36, 37, 38, 39, 60, 63, 78, 79, 89, 95, 96, 97, 98),
        # sysinfo times getuid getgid geteuid getegid getppid getpgrp getgroups getresuid getresgid getpgid getsid
        *(99, 100, 102, 104, 107, 108, 110, 111, 115, 118, 120, 121, 124),
        # rt_sigpending sigaltstack statfs fstatfs arch_prctl gettid time futex sched_getaffinity getdents64
        *(127, 131, 137, 138, 158, 186, 201, 202, 204, 217),
        # set_tid_address restart_syscall fadvise64 clock_gettime clock_getres clock_nanosleep exit_group epoll_wait
        *(218, 219, 221, 228, 229, 230, 231, 232),
        # epoll_ctl newfstatat readlinkat faccessat pselect6 ppoll set_robust_list get_robust_list epoll_pwait
        *(233, 262, 267, 269, 270, 271, 273, 274, 281),
        # eventfd2 epoll_create1 dup3 pipe2 getcpu getrandom membarrier statx rseq close_range faccessat2
        *(290, 291, 292, 293, 309, 318, 324, 332, 334, 436, 439),
    ),
    open=2,
    openat=257,
    ioctl=16,
    fcntl=72,
    prlimit64=302,
)
_AARCH64: Final = _Machine(
    arch=0xC00000B7,
    allowed=(
        # getcwd eventfd2 epoll_create1 epoll_ctl epoll_pwait dup dup3 statfs fstatfs faccessat close pipe2 getdents64
        *(17, 19, 20, 21, 22, 23, 24, 43, 44, 48, 57, 59, 61),
        # lseek read write readv writev pread64 pselect6 ppoll readlinkat newfstatat fstat exit exit_group
        *(62, 63, 64, 65, 66, 67, 72, 73, 78, 79, 80, 93, 94),
        # set_tid_address futex set_robust_list get_robust_list nanosleep getitimer setitimer
        *(96, 98, 99, 100, 101, 102, 103),
        # clock_gettime clock_getres clock_nanosleep sched_getaffinity sched_yield restart_syscall
        *(113, 114, 115, 123, 124, 128),
        # sigaltstack rt_sigaction rt_sigprocmask rt_sigpending rt_sigreturn getresuid getresgid times getpgid getsid
        *(132, 134, 135, 136, 139, 148, 150, 153, 155, 156),
        # getgroups uname getrlimit getrusage umask getcpu gettimeofday getpid getppid getuid geteuid getgid getegid gettid
        *(158, 160, 163, 165, 166, 168, 169, 172, 173, 174, 175, 176, 177, 178),
        # sysinfo brk munmap mremap mmap fadvise64 mprotect mincore madvise getrandom membarrier statx rseq
        *(179, 214, 215, 216, 222, 223, 226, 232, 233, 278, 283, 291, 293),
        # close_range faccessat2
        *(436, 439),
    ),
    open=None,
    openat=56,
    ioctl=29,
    fcntl=25,
    prlimit64=261,
)
_MACHINES: Final = {"x86_64": _X86_64, "amd64": _X86_64, "aarch64": _AARCH64, "arm64": _AARCH64}
_CLONE3: Final = 435
_OPENAT2: Final = 437
"""Their arguments lie in memory, where a filter cannot look; libc falls back to the older calls."""


def supported(machine: str | None = None) -> bool:
    """Return whether there is a list for this machine (x86-64, arm64; Linux, little endian)."""
    return platform.system() == "Linux" and (machine or platform.machine()).lower() in _MACHINES


def build_filter(machine: str | None = None) -> bytes:
    """Return the filter as an array of `struct sock_filter`, 8 bytes each.

    Args:
        machine: as `platform.machine` names it; default: this one.

    Raises:
        KeyError: there is no list for this machine; see `supported`.
    """
    calls = _MACHINES[(machine or platform.machine()).lower()]
    program: list[tuple[int, int, int, int]] = [
        (_LOAD, 0, 0, _ARCH),
        (_EQUAL, 1, 0, calls.arch),
        (_RETURN, 0, 0, _KILL),  # 32-bit calls have other numbers
        (_LOAD, 0, 0, _NR),
    ]
    for number in calls.allowed:
        program += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ALLOW)]
    if calls.open is not None:
        program += _guard(calls.open, _reads_only(argument=1))
    program += _guard(calls.openat, _reads_only(argument=2))
    program += _guard(calls.ioctl, _one_of(argument=1, values=_HARMLESS_IOCTLS))
    program += _guard(calls.fcntl, _one_of(argument=1, values=_HARMLESS_FCNTLS))
    program += _guard(calls.prlimit64, _is_null(argument=2))
    for number in (_CLONE3, _OPENAT2):
        program += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ERRNO | errno.ENOSYS)]
    program += [
        # The x32 calls of x86-64 are numbers above 2**30: they fail here too.
        (_GREATER, 0, 1, _NEWEST_KNOWN),
        (_RETURN, 0, 0, _ERRNO | errno.ENOSYS),
        (_RETURN, 0, 0, _ERRNO | errno.EPERM),
    ]
    return b"".join(struct.pack("<HBBI", *step) for step in program)


Steps = list[tuple[int, int, int, int]]


def _guard(number: int, body: Steps) -> Steps:
    """Run `body`, which returns in every branch, when the call is `number`."""
    return [(_EQUAL, 0, len(body), number), *body]


def _reads_only(argument: int) -> Steps:
    return [
        (_LOAD, 0, 0, _ARGUMENTS + 8 * argument),
        (_ANY_BIT, 0, 1, _OPEN_FOR_WRITING),
        (_RETURN, 0, 0, _ERRNO | errno.EACCES),
        (_RETURN, 0, 0, _ALLOW),
    ]


def _one_of(argument: int, values: tuple[int, ...]) -> Steps:
    body: Steps = [(_LOAD, 0, 0, _ARGUMENTS + 8 * argument)]
    for value in values:
        body += [(_EQUAL, 0, 1, value), (_RETURN, 0, 0, _ALLOW)]
    return [*body, (_RETURN, 0, 0, _ERRNO | errno.EPERM)]


def _is_null(argument: int) -> Steps:
    """Allow the call when a pointer is null: `prlimit64` that only asks."""
    return [
        (_LOAD, 0, 0, _ARGUMENTS + 8 * argument),
        (_EQUAL, 0, 3, 0),
        (_LOAD, 0, 0, _ARGUMENTS + 8 * argument + 4),
        (_EQUAL, 0, 1, 0),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _ERRNO | errno.EPERM),
    ]
