"""The filter of system calls, run by a small interpreter of classic BPF, for both machines."""

from __future__ import annotations

import errno
import os
import struct

import pytest

from aragog_env.grading import seccomp

ALLOW, KILL = 0x7FFF0000, 0x80000000
ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
CALLS = {
    "x86_64": {
        **{"read": 0, "write": 1, "open": 2, "socket": 41, "connect": 42, "clone": 56, "fork": 57, "vfork": 58},
        **{"execve": 59, "kill": 62, "ptrace": 101, "mount": 165, "openat": 257, "unlink": 87, "setsid": 112, "prctl": 157},
        **{"tgkill": 234, "mkdir": 83, "rename": 82, "chmod": 90, "truncate": 76, "sendto": 44, "io_uring_setup": 425},
        **{"bpf": 321, "unshare": 272, "setns": 308, "creat": 85, "memfd_create": 319, "prlimit64": 302, "ioctl": 16},
        **{"fcntl": 72, "setrlimit": 160, "process_vm_writev": 311, "seccomp": 317, "exit_group": 231, "mmap": 9},
    },
    "aarch64": {
        **{"read": 63, "write": 64, "socket": 198, "connect": 203, "clone": 220, "execve": 221, "kill": 129, "ptrace": 117},
        **{"mount": 40, "openat": 56, "unlinkat": 35, "setsid": 157, "prctl": 167, "tgkill": 131, "mkdirat": 34},
        **{"sendto": 206, "renameat2": 276, "fchmodat": 53, "truncate": 45, "io_uring_setup": 425, "bpf": 280},
        **{"unshare": 97, "setns": 268, "memfd_create": 279},
        **{"prlimit64": 261, "ioctl": 29, "fcntl": 25, "setrlimit": 164, "process_vm_writev": 271},
        **{"seccomp": 277, "exit_group": 94, "mmap": 222},
    },
}  # fmt: skip
HARMLESS = {"read", "write", "exit_group", "mmap"}
GUARDED = {"open", "openat", "prlimit64", "ioctl", "fcntl"}


def decide(machine: str, number: int, *arguments: int, arch: int | None = None) -> int:
    """Return what the filter answers to a system call."""
    words = [number, ARCH[machine] if arch is None else arch, 0, 0]
    for value in (*arguments, *[0] * (6 - len(arguments))):
        words += [value & 0xFFFFFFFF, value >> 32]
    code = seccomp.build_filter(machine)
    steps = list(struct.iter_unpack("<HBBI", code))
    at = accumulator = 0
    while True:
        operation, if_true, if_false, k = steps[at]
        at += 1
        if operation == 0x20:
            accumulator = words[k // 4]
        elif operation == 0x06:
            return int(k)
        else:
            holds = {0x15: accumulator == k, 0x25: accumulator > k, 0x45: bool(accumulator & k)}[operation]
            at += if_true if holds else if_false


def refused(code: int) -> int:
    """Return the error number of an answer that refuses a call."""
    assert code & 0xFFFF0000 == 0x00050000
    return code & 0xFFFF


@pytest.mark.parametrize("machine", ARCH)
def test_only_harmless_calls_are_let_through(machine: str) -> None:
    for name, number in CALLS[machine].items():
        if name in HARMLESS:
            assert decide(machine, number) == ALLOW, name
        elif name not in GUARDED:
            assert refused(decide(machine, number)) == errno.EPERM, name


@pytest.mark.parametrize("machine", ARCH)
def test_files_are_opened_for_reading_only(machine: str) -> None:
    openat = CALLS[machine]["openat"]
    assert decide(machine, openat, 0xFFFFFF9C, 1, os.O_RDONLY | os.O_CLOEXEC) == ALLOW
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_CREAT, os.O_TRUNC, os.O_APPEND, os.O_RDWR | os.O_CLOEXEC):
        assert refused(decide(machine, openat, 0xFFFFFF9C, 1, flags)) == errno.EACCES
    if machine == "x86_64":
        assert decide(machine, 2, 1, os.O_RDONLY) == ALLOW
        assert refused(decide(machine, 2, 1, os.O_WRONLY)) == errno.EACCES


@pytest.mark.parametrize("machine", ARCH)
def test_arguments_decide_for_some_calls(machine: str) -> None:
    calls = CALLS[machine]
    assert decide(machine, calls["prlimit64"], 0, 7, 0, 1) == ALLOW
    assert refused(decide(machine, calls["prlimit64"], 0, 7, 1 << 40, 0)) == errno.EPERM
    assert refused(decide(machine, calls["prlimit64"], 0, 7, 4096, 0)) == errno.EPERM
    assert decide(machine, calls["ioctl"], 1, 0x5401) == ALLOW
    assert refused(decide(machine, calls["ioctl"], 1, 0x5412)) == errno.EPERM  # TIOCSTI types on a terminal
    assert decide(machine, calls["fcntl"], 1, 1) == ALLOW
    assert refused(decide(machine, calls["fcntl"], 1, 8)) == errno.EPERM  # F_SETOWN


@pytest.mark.parametrize("machine", ARCH)
def test_calls_of_another_kind_or_a_later_kernel(machine: str) -> None:
    assert decide(machine, 0, arch=0x40000003) == KILL  # 32-bit x86
    assert refused(decide(machine, 435)) == errno.ENOSYS  # clone3
    assert refused(decide(machine, 437)) == errno.ENOSYS  # openat2
    assert refused(decide(machine, 470)) == errno.ENOSYS
    assert refused(decide(machine, (1 << 30) + 1)) == errno.ENOSYS  # x32's write


def test_machines_without_a_list_are_not_supported() -> None:
    assert not seccomp.supported("riscv64")
    with pytest.raises(KeyError):
        seccomp.build_filter("riscv64")
