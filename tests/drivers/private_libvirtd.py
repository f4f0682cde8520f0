"""A libvirtd of the test's own, which may be killed: it has a socket of its own and runs as an ordinary user."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import libvirt

_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"
_PATIENCE = 30.0  # seconds until it answers


@dataclass
class PrivateLibvirtd:
    """A daemon with everything that it knows in one folder. Its guests outlive it, as those of any libvirtd do."""

    folder: Path
    user: int
    _process: "subprocess.Popen[bytes] | None" = field(default=None, init=False)

    @property
    def uri(self) -> str:
        return f"qemu+unix:///session?socket={self.folder}/run/libvirt/libvirt-sock"

    def start(self) -> None:
        """Start it unless it runs, and return when it answers."""
        if self._process is None:
            self.begin()
        end = time.monotonic() + _PATIENCE
        while True:
            try:
                libvirt.open(self.uri).close()
            except libvirt.libvirtError:
                assert time.monotonic() < end, (self.folder / "log").read_text()
                time.sleep(0.05)
            else:
                return

    def begin(self) -> None:
        """Start it and do not wait for it."""
        places = {"HOME": "", "XDG_RUNTIME_DIR": "run", "XDG_CONFIG_HOME": "etc", "XDG_CACHE_HOME": "cache"}
        environ = {name: str(self.folder / place) for name, place in places.items()}
        root = os.geteuid() == 0
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                ["/usr/bin/env", "libvirtd", "-f", str(self.folder / "etc/libvirt/libvirtd.conf"),
                 "--pid-file", str(self.folder / "run/libvirtd.pid")],
                cwd="/",
                env={"PATH": _PATH, "XDG_DATA_HOME": str(self.folder / "data"), **environ},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                user=self.user if root else None,
                group=pwd.getpwuid(self.user).pw_gid if root else None,
                extra_groups=[] if root else None,
            )  # fmt: skip

    def kill(self) -> None:
        """What a crash does to it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def guests(self) -> dict[str, int]:
        """The process ids of its guests that run, by name, whether or not the daemon does."""
        found = {}
        for file in (self.folder / "run/libvirt/qemu/run").glob("*.pid"):
            with suppress(OSError, ValueError):  # it ended just now
                pid = int(file.read_text())
                if f"guest={file.stem}" in Path(f"/proc/{pid}/cmdline").read_text():
                    found[file.stem] = pid
        return found


@contextmanager
def private_libvirtd() -> Iterator[PrivateLibvirtd]:
    """A daemon that runs; in the end it is gone with its guests and its folder."""
    # The path of a socket must be short, and another user get through: pytest's tmp_path is neither.
    folder = Path(tempfile.mkdtemp(prefix="pv-", dir="/var/tmp"))
    user = pwd.getpwnam("nobody").pw_uid if os.geteuid() == 0 else os.geteuid()
    for name in ("run", "etc/libvirt", "cache", "data"):
        (folder / name).mkdir(parents=True)
    (folder / "etc/libvirt/libvirtd.conf").write_text('auth_unix_rw = "none"\n')
    (folder / "etc/libvirt/qemu.conf").write_text('stdio_handler = "file"\n')  # no virtlogd beside it
    for path in (folder, *folder.rglob("*")):
        os.chown(path, user, -1)
    folder.chmod(0o711)
    daemon = PrivateLibvirtd(folder, user)
    try:
        daemon.start()
        yield daemon
    finally:
        daemon.kill()
        for pid in daemon.guests().values():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)
