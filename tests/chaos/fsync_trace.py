"""Runs a program and notes, for each file, how much of it the kernel was made to bring to the disk.

    python -m tests.chaos.fsync_trace NOTES PROGRAM ARGUMENT...

Honest by construction: a seccomp filter stops the program at each fsync and fdatasync, and only there. Before the
kernel begins, the size of the file is read; once the call has succeeded, so many bytes are durable. One line per
success goes to NOTES: `inode bytes`. Needs no compiler and no tool: Linux 5.3 or newer, ptrace allowed, x86-64 or
AArch64. Any power cut after a call keeps what these lines say; what was written later may be gone.
"""

import ctypes
import os
import platform
import signal
import struct
import sys
from pathlib import Path
from typing import TextIO

SYNC_CALLS = {"x86_64": (74, 75), "aarch64": (82, 83)}  # fsync, fdatasync
AUDIT_ARCH = {"x86_64": 0xC000_003E, "aarch64": 0xC000_00B7}

PTRACE_TRACEME, PTRACE_CONT, PTRACE_SYSCALL = 0, 7, 24
PTRACE_SETOPTIONS, PTRACE_GET_SYSCALL_INFO = 0x4200, 0x420E
OPTION_TRACESYSGOOD, OPTION_FORK, OPTION_VFORK, OPTION_CLONE = 0x1, 0x2, 0x4, 0x8
OPTION_SECCOMP, OPTION_EXITKILL = 0x80, 0x10_0000
EVENT_SECCOMP = 7
SYSCALL_STOP = signal.SIGTRAP | 0x80
INFO_EXIT, INFO_SECCOMP = 2, 3
WALL = 0x4000_0000

PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, SECCOMP_MODE_FILTER = 22, 38, 2
RET_TRACE, RET_ALLOW = 0x7FF0_0000, 0x7FFF_0000
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
OFFSET_NUMBER, OFFSET_ARCH = 0, 4  # in struct seccomp_data

libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.restype = ctypes.c_long
libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)


class _Program(ctypes.Structure):
    """struct sock_fprog"""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def why_not() -> str | None:
    """None, or why this machine cannot trace."""
    if sys.platform != "linux" or platform.machine() not in SYNC_CALLS:
        return f"fsync is traced on Linux on {' and '.join(SYNC_CALLS)} alone"
    scope = Path("/proc/sys/kernel/yama/ptrace_scope")
    if scope.exists() and int(scope.read_text()) == 3:
        return "this kernel allows no ptrace (kernel.yama.ptrace_scope = 3)"
    return None


def read_notes(notes: Path) -> dict[int, int]:
    """inode → the most bytes of it that were ever made durable."""
    durable: dict[int, int] = {}
    for line in notes.read_text().splitlines():
        inode, size = map(int, line.split())
        durable[inode] = max(durable.get(inode, 0), size)
    return durable


def run_traced(command: list[str], notes: TextIO) -> int:
    """Run `command` to its end. Returns its exit code, negative for a signal."""
    child = os.fork()
    if child == 0:
        _become(command)
    _stopped_at_exec(child)
    options = OPTION_TRACESYSGOOD | OPTION_FORK | OPTION_VFORK | OPTION_CLONE | OPTION_SECCOMP | OPTION_EXITKILL
    _ptrace(PTRACE_SETOPTIONS, child, options)
    _ptrace(PTRACE_CONT, child, 0)
    begun: dict[int, tuple[int, int]] = {}
    while True:
        thread, status = os.waitpid(-1, WALL)
        if not os.WIFSTOPPED(status):
            begun.pop(thread, None)
            if thread == child:
                return os.waitstatus_to_exitcode(status)
            continue
        try:
            _go_on(thread, status, begun, notes)
        except ProcessLookupError:
            begun.pop(thread, None)  # killed meanwhile: its end comes next


def _go_on(thread: int, status: int, begun: dict[int, tuple[int, int]], notes: TextIO) -> None:
    event, number = status >> 16, os.WSTOPSIG(status)
    if event == EVENT_SECCOMP:
        begun[thread] = _file_of(thread)
        _ptrace(PTRACE_SYSCALL, thread, 0)  # stops again when the call has ended
    elif number == SYSCALL_STOP:
        operation, _, result = _syscall_info(thread)
        if operation != INFO_EXIT:
            _ptrace(PTRACE_SYSCALL, thread, 0)
            return
        inode, size = begun.pop(thread)
        if result == 0:
            notes.write(f"{inode} {size}\n")
            notes.flush()  # before the program may tell anybody
        _ptrace(PTRACE_CONT, thread, 0)
    elif event or number in (signal.SIGSTOP, signal.SIGTRAP):
        _ptrace(PTRACE_CONT, thread, 0)  # a new thread or process, and its first stop
    else:
        _ptrace(PTRACE_CONT, thread, number)  # a signal of its own: handed on


def _file_of(thread: int) -> tuple[int, int]:
    """inode and size of the file that the stopped thread syncs: what it holds now, the call brings to the disk."""
    operation, descriptor, _ = _syscall_info(thread)
    if operation != INFO_SECCOMP:
        raise RuntimeError(f"a seccomp stop told of operation {operation}")
    found = Path(f"/proc/{thread}/fd/{descriptor}").stat()
    return found.st_ino, found.st_size


def _syscall_info(thread: int) -> tuple[int, int, int]:
    """Of struct ptrace_syscall_info: operation; the call's first argument (at its entry); its result (at its exit)."""
    info = ctypes.create_string_buffer(88)
    _ptrace(PTRACE_GET_SYSCALL_INFO, thread, ctypes.addressof(info), len(info))
    (first,) = struct.unpack_from("=Q", info.raw, 32)  # entry and seccomp: nr at 24, then args
    (result,) = struct.unpack_from("=q", info.raw, 24)
    return info.raw[0], int(first), int(result)


def _ptrace(request: int, thread: int, data: int, address: int = 0) -> None:
    if libc.ptrace(request, thread, address, data) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"ptrace request {request}: {os.strerror(number)}")


def _stopped_at_exec(child: int) -> None:
    _, status = os.waitpid(child, WALL)
    if not os.WIFSTOPPED(status):
        raise RuntimeError(f"the program could not be traced: it ended with {os.waitstatus_to_exitcode(status)}")


def _become(command: list[str]) -> None:
    """In the child: ask to be traced at the calls that sync, then be the program."""
    try:
        _ptrace(PTRACE_TRACEME, 0, 0)
        arch, (fsync, fdatasync) = AUDIT_ARCH[platform.machine()], SYNC_CALLS[platform.machine()]
        steps = (
            (LOAD, 0, 0, OFFSET_ARCH),
            (JUMP_IF_EQUAL, 0, 4, arch),
            (LOAD, 0, 0, OFFSET_NUMBER),
            (JUMP_IF_EQUAL, 1, 0, fsync),
            (JUMP_IF_EQUAL, 0, 1, fdatasync),
            (RETURN, 0, 0, RET_TRACE),
            (RETURN, 0, 0, RET_ALLOW),
        )
        code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
        program = _Program(len(steps), ctypes.addressof(code))
        if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0:
            os._exit(126)
        if libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0) < 0:
            os._exit(125)
        os.execv(command[0], command)
    finally:
        os._exit(127)


if __name__ == "__main__":
    with Path(sys.argv[1]).open("a") as told:
        code = run_traced(sys.argv[2:], told)
    sys.exit(code if code >= 0 else 128 - code)
