"""Become a command that can reach nothing but its own folder: run as a script, in an interpreter of its own.

Linux namespaces and Landlock, without privileges. The command sees a file system that has the folder, this Python, the system's
programs and nothing else, of which it can write the folder alone (64 MiB of memory, not disk); no network, not even this machine's;
no process of the machine but its own, which end with it; and it has no capability. Limits come on top.

It imports no other module of the project, since it runs outside of it, and is not a fork of the stage: Python code between fork and
exec can hang a process that has threads, as torch has.
"""

import ctypes
import json
import os
import resource
import shutil
import signal
import struct
import sys
from pathlib import Path

FOLDER = "/answer"  # where the command finds its folder
FOLDER_BYTES = 64 * 2**20
PROGRAMS = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64")
SETTINGS = ("/etc/alternatives", "/etc/ld.so.cache", "/etc/localtime")
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
CANNOT, NOT_FOUND = 125, 127  # exit statuses, with the reason on stderr
# From linux/sched.h, linux/mount.h, linux/prctl.h and linux/landlock.h.
NEW_MOUNTS, NEW_IPC, NEW_USER, NEW_PIDS, NEW_NETWORK = 0x20000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC = 2, 4, 4096, 16384
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # the same number on every architecture
EXECUTE, WRITE_FILE, READ_FILE, READ_FOLDER = 1, 2, 4, 8
# All kinds of access to files by Landlock's version; later ones add none of these.
ALL_OF_ABI = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1}

libc = ctypes.CDLL(None, use_errno=True)


def call(what: str, result: int) -> int:
    """A system call's result.

    Raises:
        OSError: it failed; the message has what was tried.
    """
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def mount(source: str, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    """Mount a file system, or bind a path to another one (mount, section 2 of the manual)."""
    given = (None if text is None else text.encode() for text in (source, target, kind))
    call(f"mount {target}", libc.mount(*given, flags, options.encode() if options else None))


def separate() -> None:
    """Enter namespaces of this process's own: users, files, network, processes of its children."""
    inside, user, group = 1000, os.getuid(), os.getgid()  # not 0, so that exec drops all capabilities
    call("user namespaces", libc.unshare(NEW_USER | NEW_MOUNTS | NEW_NETWORK | NEW_PIDS | NEW_IPC))
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{inside} {user} 1"),
        ("gid_map", f"{inside} {group} 1"),
    ):
        Path(f"/proc/self/{name}").write_text(text, encoding="ascii")


def enter_root(visible: list[str]) -> None:
    """Make a root of memory that has the folder's files and the visible paths, and nothing else."""
    root = Path.cwd()
    files = {path.name: path.read_bytes() for path in root.iterdir()}
    mount("tmpfs", str(root), "tmpfs", MS_NOSUID | MS_NODEV, f"size={FOLDER_BYTES},mode=755")
    for path in filter(os.path.exists, (*PROGRAMS, *SETTINGS, *DEVICES, *visible)):
        inside = root / path.lstrip("/")
        if Path(path).is_dir():
            inside.mkdir(parents=True, exist_ok=True)
        else:
            inside.parent.mkdir(parents=True, exist_ok=True)
            inside.touch()
        mount(path, str(inside), None, MS_BIND | MS_REC)
    folder = root / FOLDER.lstrip("/")
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    os.chroot(root)
    os.chdir(FOLDER)


def only_write_folder() -> None:
    """Landlock: read and execute everywhere, write in the folder and to devices; for good, and for all descendants."""
    abi = call("Landlock", libc.syscall(CREATE_RULESET, None, 0, 1))
    everything = ALL_OF_ABI[min(abi, max(ALL_OF_ABI))]
    handled = struct.pack("=Q", everything)
    rules = call("Landlock", libc.syscall(CREATE_RULESET, handled, len(handled), 0))
    for path, access in (
        ("/", EXECUTE | READ_FILE | READ_FOLDER),
        (FOLDER, everything),
        ("/dev/null", WRITE_FILE),
    ):
        opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
        call("Landlock", libc.syscall(ADD_RULE, rules, 1, struct.pack("=Qi", access, opened), 0))
        os.close(opened)
    call("no_new_privs", libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    call("Landlock", libc.syscall(RESTRICT_SELF, rules, 0))
    os.close(rules)


def as_first_process() -> None:
    """Go on in a child that is the first process of its namespace, with which all others there end; wait for it here."""
    if child := os.fork():
        os._exit(status_of(os.waitpid(child, 0)[1]))
    end_with_parent()
    if child := os.fork():
        while True:  # orphans become its children
            ended, status = os.wait()
            if ended == child:
                os._exit(status_of(status))


def end_with_parent() -> None:
    """Have the kernel end this process when the one that started it is gone."""
    call("pdeathsig", libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0))


def status_of(waited: int) -> int:
    """An exit status as a shell shows it: 128 + the signal's number where one ended the process."""
    code = os.waitstatus_to_exitcode(waited)
    return code if code >= 0 else 128 - code


def become(words: list[str], limits: dict[str, int]) -> None:
    """Set the limits and become the command, without output."""
    for name, value in limits.items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))
    if shutil.which(words[0]) is None:
        sys.stderr.write(f"no command {words[0]!r}")
        sys.exit(NOT_FOUND)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    os.execvp(words[0], words)


def main() -> None:
    """The argument is JSON: command, limits, and the visible paths, or null for no isolation."""
    asked = json.loads(sys.argv[1])
    end_with_parent()
    os.nice(19)  # so that the stage gets to stop it, however many processes it starts
    if asked["visible"] is not None:
        try:
            separate()
            as_first_process()
            enter_root(asked["visible"])
            only_write_folder()
            os.environ.update({"HOME": FOLDER, "TMPDIR": FOLDER})
        except OSError as error:
            sys.stderr.write(str(error.strerror))
            sys.exit(CANNOT)
    become(asked["command"], asked["limits"])


if __name__ == "__main__":
    main()
