"""Programs that mean harm end safely, as root and as a normal user, with and without namespaces."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from aragog_env.grading import sandbox, seccomp
from aragog_env.grading.sandbox import Limits, SandboxError, Verdict, run_isolated

ROOT = Path(__file__).resolve().parents[2]
QUICK = Limits(wall_s=1.0, cpu_s=5)
PATIENT = Limits(wall_s=20.0, cpu_s=20)
"""Longer than an interpreter takes to start on a busy machine."""
pytestmark = pytest.mark.skipif(not seccomp.supported(), reason="programs are run on Linux on x86-64 or arm64 only")


def run(solution: str, checks: str = "", limits: Limits | None = None, *, namespaces: bool = True) -> Verdict:
    return run_isolated("program", {"solution": solution, "checks": checks}, limits, namespaces=namespaces)


def succeeding(actions: list[str], *, namespaces: bool = True) -> str:
    """Run each action in one program, and return those that the operating system did not refuse."""
    program = (
        f"done = []\nfor action in {actions!r}:\n    try:\n        exec(action, {{}})\n"
        "    except OSError:\n        continue\n    done.append(action)\nraise ValueError(done)"
    )
    verdict = run(program, namespaces=namespaces)
    assert verdict.status == "error" and "ValueError" in verdict.detail, verdict.detail
    return verdict.detail.partition(": ")[2]


def session_members(session: int) -> list[int]:
    """Return the processes of a session; /proc/PID/stat can be read by everybody."""
    members = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == session and fields[0] != "Z":
                members.append(int(entry.name))
    return members


def gone(session: int, within_s: float = 5.0) -> bool:
    deadline = time.monotonic() + within_s
    while session_members(session):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The supervisors that were started; each leads a session of its own, which must be empty at the end."""
    pids: list[int] = []
    popen = subprocess.Popen

    def record(*arguments: object, **keywords: object) -> subprocess.Popen[bytes]:
        process: subprocess.Popen[bytes] = popen(*arguments, **keywords)  # type: ignore[call-overload]
        pids.append(process.pid)
        return process

    monkeypatch.setattr(subprocess, "Popen", record)
    yield pids
    assert pids and all(gone(pid) for pid in pids), "something was left running"


def test_right_and_wrong_programs() -> None:
    right = run("def f(x):\n    return x + 1\n", "assert f(1) == 2")
    assert (right.status, right.detail) == ("passed", "")
    wrong = run("def f(x):\n    return x - 1\n", "assert f(1) == 2, 'off'")
    assert wrong.status == "failed" and "AssertionError in the checks, line 1: off" in wrong.detail
    assert run("def f(x) return x", "f(1)").status == "error"
    assert run("def f(x): return y", "f(1)").status == "failed"


def test_what_holds_a_program_is_reported() -> None:
    held = sandbox.isolation()
    assert "seccomp" in held and "resource limits" in held and "no capabilities" in held
    without = run("", namespaces=False).isolation
    assert "seccomp" in without and not any("namespace" in layer for layer in without)


def test_the_standard_library_is_there_and_nothing_else() -> None:
    names = "math re heapq bisect collections itertools functools decimal fractions random string typing dataclasses"
    names += " hashlib datetime statistics operator copy enum json unicodedata sqlite3 asyncio"
    for name in names.split():
        assert name in sys.stdlib_module_names
    assert run("import " + ", ".join(names.split())).status == "passed"
    assert "ModuleNotFoundError" in run("import numpy").detail
    assert "ModuleNotFoundError" in run("import aragog_env").detail


def test_verdicts_repeat() -> None:
    program = "order = list({'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h'})\nraise ValueError(order)"
    assert run(program).detail == run(program).detail


def test_dataclasses_and_main_blocks() -> None:
    program = (
        "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\n"
    )
    assert run(program + "if __name__ == '__main__':\n    input()\n", "assert P(1) == P(1)").status == "passed"


FORK_BOMB = "import os\nwhile True:\n    os.fork()"
THREAD_BOMB = "import threading\nwhile True:\n    threading.Thread(target=input).start()"
ZOMBIES = "import os\nfor _ in range(1000):\n    if os.fork() == 0:\n        os._exit(0)"
DAEMON = "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        time.sleep(60)"
SHELL = "import subprocess\nsubprocess.run(['sleep', '60'])"


@pytest.mark.parametrize("namespaces", [True, False])
@pytest.mark.parametrize("program", [FORK_BOMB, THREAD_BOMB, ZOMBIES, DAEMON, SHELL])
def test_no_process_and_no_thread_can_be_started(program: str, namespaces: bool, started: list[int]) -> None:
    verdict = run(program, limits=PATIENT, namespaces=namespaces)
    assert verdict.status == "error"
    assert "PermissionError" in verdict.detail or "can't start new thread" in verdict.detail


@pytest.mark.parametrize("program", ["while True: pass", "import time\ntime.sleep(60)", "open('/dev/zero').read()"])
def test_endless_programs_are_stopped(program: str, started: list[int]) -> None:
    begun = time.monotonic()
    verdict = run("def f():\n    " + program.replace("\n", "\n    "), "f()", QUICK)
    assert verdict.status in ("timeout", "failed") and verdict.wall_s < 3
    assert time.monotonic() - begun < 10


def test_a_program_that_catches_everything_is_stopped() -> None:
    program = (
        "import signal\nfor s in (signal.SIGTERM, signal.SIGXCPU, signal.SIGINT):\n    signal.signal(s, signal.SIG_IGN)\n"
        "while True:\n    try:\n        while True: pass\n    except BaseException: pass"
    )
    assert run(program, limits=QUICK).status == "timeout"


@pytest.mark.parametrize("namespaces", [True, False])
def test_processor_time_is_limited(namespaces: bool) -> None:
    verdict = run("while True: pass", limits=Limits(wall_s=20.0, cpu_s=1), namespaces=namespaces)
    assert verdict.status == "timeout" and "processor time" in verdict.detail and verdict.cpu_s < 4


@pytest.mark.parametrize(
    "program", ["x = 'a' * 10**10", "x = []\nwhile True: x.append(bytes(10**7))", "x = bytearray(10 * 2**30)"]
)
def test_memory_is_limited(program: str) -> None:
    verdict = run(program)
    assert verdict.status == "error" and "MemoryError" in verdict.detail


@pytest.mark.parametrize("namespaces", [True, False])
def test_there_is_no_network(namespaces: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        port = server.getsockname()[1]
        actions = [
            f"import socket; socket.create_connection(('127.0.0.1', {port}))",
            f"import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', {port}))",
            "import socket; socket.socket(socket.AF_UNIX)",
            f"import urllib.request; urllib.request.urlopen('http://127.0.0.1:{port}')",
        ]
        assert succeeding(actions, namespaces=namespaces) == "[]"
        with pytest.raises(TimeoutError):
            server.accept()


@pytest.mark.parametrize("namespaces", [True, False])
def test_nothing_can_be_written(tmp_path: Path, namespaces: bool) -> None:
    tmp_path.chmod(0o777)
    kept = tmp_path / "kept.txt"
    kept.write_text("kept")
    kept.chmod(0o666)
    new, old = str(tmp_path / "new"), str(kept)
    actions = [
        f"open({new!r}, 'w').write('x')",
        f"open({old!r}, 'a').write('x')",
        f"open({old!r}, 'r+').truncate()",
        f"import os; os.open({old!r}, os.O_RDONLY | os.O_TRUNC)",
        f"import os; os.unlink({old!r})",
        f"import os; os.rename({old!r}, {new!r})",
        f"import os; os.chmod({old!r}, 0)",
        f"import os; os.truncate({old!r}, 0)",
        f"import os; os.mkdir({new!r})",
        f"import os; os.symlink('x', {new!r})",
        f"import os; os.mkfifo({new!r})",
        "open('here', 'w')",
        "import tempfile; tempfile.NamedTemporaryFile()",
    ]
    assert succeeding(actions, namespaces=namespaces) == "[]"
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"] and kept.read_text() == "kept"
    assert kept.stat().st_mode & 0o777 == 0o666


def test_files_of_others_cannot_be_read(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("sesame")
    if "Landlock" not in sandbox.isolation():
        pytest.skip("this kernel has no Landlock")
    paths = (str(secret), "/etc/passwd", f"/proc/{os.getpid()}/environ", "/proc/self/maps")
    assert succeeding([f"open({path!r}).read()" for path in paths]) == "[]"


def test_the_environment_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret-key")
    verdict = run("import os\nraise ValueError(sorted(os.environ))")
    assert "secret" not in verdict.detail and "OPENAI" not in verdict.detail and "PYTHONHASHSEED" in verdict.detail


@pytest.mark.parametrize("namespaces", [True, False])
def test_nobody_can_be_killed(namespaces: bool, started: list[int]) -> None:
    targets = (str(os.getpid()), "os.getppid()", "os.getpid()", "-1", "0", f"-{os.getpgrp()}")
    actions = [f"import os; os.kill({target}, 9)" for target in targets]
    assert succeeding(actions, namespaces=namespaces) == "[]"


def test_output_goes_nowhere_and_reports_are_short(started: list[int]) -> None:
    flood = "import sys, os\nwhile True:\n    sys.stdout.write('x' * 10**6)\n    os.write(2, b'y' * 10**6)"
    assert run(flood, limits=QUICK).status == "timeout"
    assert len(run("raise ValueError('x' * 10**7)").detail) < 400
    everywhere = (
        "import os\nwhile True:\n    for fd in range(3, 64):\n"
        "        try: os.write(fd, b'x' * 10**5)\n        except OSError: pass"
    )
    verdict = run(everywhere, limits=QUICK)
    assert verdict.status == "error" and "more than" in verdict.detail


@pytest.mark.parametrize(
    "program",
    [
        "import os\nos._exit(0)",
        "raise SystemExit(0)",
        "import sys\nsys.exit()",
        "import os\nos.write(3, b'passed')\nos._exit(0)",
        'import os\nfor fd in range(3, 64):\n    try: os.write(fd, b\'{"status": "passed"}\')\n    except OSError: pass\n'
        "os._exit(0)",
        "import os\nos.closerange(0, 64)",
        "import ctypes\nctypes.string_at(0)",
        "import os\nos.abort()",
        "import sys\nsys.setrecursionlimit(10**9)\ndef f(): f()\nf()",
        "import os, json\nos.write = json.dumps = print\nraise ValueError",
        "class E(Exception):\n    def __str__(self): raise E\nraise E",
        "print(1/0)",
    ],
)
def test_nothing_passes_by_ending_early(program: str, started: list[int]) -> None:
    assert run(program, "assert False", QUICK).status in ("error", "failed", "timeout")


def test_a_program_that_lets_go_of_its_report_may_not_go_on(started: list[int]) -> None:
    begun = time.monotonic()
    verdict = run("import os, time\nos.closerange(0, 64)\ntime.sleep(60)", limits=Limits(wall_s=30.0))
    assert verdict.status == "timeout" and time.monotonic() - begun < 15


def test_many_at_once() -> None:
    with ThreadPoolExecutor(4) as pool:
        verdicts = list(pool.map(lambda k: run(f"x = {k}", f"assert x != {k % 2}"), range(8)))
    assert [v.status for v in verdicts] == ["failed", "failed"] + ["passed"] * 6


def test_nothing_is_run_where_nothing_holds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seccomp, "build_filter", lambda: b"")
    assert run("").status == "refused"
    monkeypatch.setattr(seccomp, "supported", lambda: False)
    assert run("").status == "refused"


def test_a_sandbox_that_breaks_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "nothing"))
    with pytest.raises(SandboxError, match="cannot start"):
        run("")
    monkeypatch.setattr(sys, "executable", "/bin/true")
    with pytest.raises(SandboxError, match="sandbox"):
        run("")


def descendants(pid: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            if parent == pid:
                found.append(int(entry.name))
    return found


def wait_for(condition: Callable[[], list[int]], within_s: float = 10.0) -> list[int]:
    deadline = time.monotonic() + within_s
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


ASKER = (
    "from aragog_env.grading.sandbox import *\n"
    "print(run_isolated('program', {'solution': 'import time; time.sleep(50)', 'checks': ''}, Limits(wall_s=55)).detail)"
)


@pytest.mark.parametrize("victim", ["asker", "supervisor"])
def test_the_program_ends_when_who_asked_or_watches_is_killed(victim: str, tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    asker = subprocess.Popen([sys.executable, "-c", ASKER], cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
    try:
        [supervisor] = wait_for(lambda: descendants(asker.pid))
        wait_for(lambda: descendants(supervisor))
        os.kill(asker.pid if victim == "asker" else supervisor, signal.SIGKILL)
        assert gone(supervisor), "the program outlived the one who asked for it"
        if victim == "supervisor":
            asker.wait(30)
        assert list(tmp_path.iterdir()) == []
    finally:
        asker.kill()
        asker.wait()


def test_as_a_normal_user() -> None:
    """The same, run by a user without rights; only root can try that."""
    if os.getuid() != 0:
        pytest.skip("the other tests ran as a normal user")
    nobody = {"user": 65534, "group": 65534, "extra_groups": [], "capture_output": True, "text": True}
    # The package's __init__ needs packages that the user's interpreter may lack; the sandbox does not.
    stub = (
        "import sys, types\n"
        "sys.modules['aragog_env'] = package = types.ModuleType('aragog_env')\n"
        f"package.__path__ = [{str(ROOT / 'aragog_env')!r}]\n"
        "assert sys.version_info >= (3, 11)\n"
    )
    code = (
        "from aragog_env.grading.sandbox import *\n"
        "def run(s): return run_isolated('program', {'solution': s, 'checks': ''}, Limits(wall_s=5)).status\n"
        "print(run(''), run('import os; os.fork()'), run('import socket; socket.socket()'), \n"
        '    run(\'open("x", "w")\'))'
    )
    for interpreter in (sys.executable, "/usr/bin/python3"):
        try:
            subprocess.run([interpreter, "-c", stub + "import aragog_env.errors"], cwd="/", check=True, **nobody)  # type: ignore[call-overload]
        except (OSError, subprocess.CalledProcessError):
            continue
        done = subprocess.run([interpreter, "-c", stub + code], cwd="/", check=True, **nobody)  # type: ignore[call-overload]
        assert done.stdout.split() == ["passed", "error", "error", "error"]
        return
    pytest.skip("no interpreter can be reached by a normal user")


def test_threads_of_the_caller_do_not_matter() -> None:
    verdicts: list[Verdict] = []
    thread = threading.Thread(target=lambda: verdicts.append(run("x = 1", "assert x == 1")))
    thread.start()
    thread.join(30)
    assert verdicts[0].status == "passed"
