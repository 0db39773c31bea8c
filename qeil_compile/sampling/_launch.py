"""Started by `sandbox.run` as a process of its own: sets limits, cuts off the network, and becomes the command.

Reads one JSON argument; imports nothing but the standard library. Exit status 125 with a line on standard error where
a limit that was demanded cannot be set.
"""

import ctypes
import json
import os
import resource
import signal
import sys

_NEWUSER, _NEWNET, _NEWPID, _NEWIPC = 0x10000000, 0x40000000, 0x20000000, 0x08000000
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38


def _isolate() -> bool:
    """Namespaces of its own for users, network, processes: without privileges, where the kernel allows it."""
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    if libc.unshare(_NEWUSER | _NEWNET | _NEWPID | _NEWIPC) != 0:
        return False
    try:
        for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
            with open(f"/proc/self/{name}", "w") as file:  # noqa: PTH123
                file.write(text)
    except OSError:
        pass  # the process runs as nobody then
    return True


def _stay() -> None:
    """First process of the namespace: all others in it end with it, and it ends with its parent."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        if code < 0:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            os.kill(os.getpid(), -code)
        os._exit(code if code >= 0 else 128 - code)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> None:
    settings = json.loads(sys.argv[1])
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    isolated = settings["isolate"] and sys.platform == "linux" and _isolate()
    os.write(settings["report"], b"1" if isolated else b"0")
    os.close(settings["report"])
    if isolated:
        _stay()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    limits = {
        resource.RLIMIT_AS: settings["memory"],
        resource.RLIMIT_CPU: settings["seconds"],
        resource.RLIMIT_FSIZE: settings["output"],
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: 64,
    }
    try:
        for limit, value in limits.items():
            hard = resource.getrlimit(limit)[1]
            value = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(limit, (value, value))
        os.execvpe(settings["command"][0], settings["command"], settings["environment"])
    except (OSError, ValueError) as error:
        print(f"sandbox: {error}", file=sys.stderr, flush=True)
        os._exit(125)


if __name__ == "__main__":
    main()
