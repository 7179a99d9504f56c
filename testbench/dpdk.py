"""Programs at the two ends of a vhost-user socket, DPDK's and ours, for the scenarios and the benches that pair them.

Each program is a context manager: at its end its process is gone. DPDK's take their memory from huge pages without a
mounted file system (--in-memory), as one piece for each size (--single-file-segments), or the other end does not see it.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NR_HUGEPAGES = Path("/proc/sys/vm/nr_hugepages")
# Two programs of DPDK's, and one of ours.
HUGEPAGES = 700
# For a program to start, to answer or to end on a busy machine.
LIMIT_S = 60
# Frames that testpmd moves at once.
BURST = 32
MEMORY_MIB = 256


class Failed(Exception):
    """What went wrong, for the reader."""


def missing():
    """What this machine lacks, as one phrase; nothing when all is there."""
    lacks = []
    if os.geteuid() != 0:
        lacks.append("root")
    if not NR_HUGEPAGES.exists():
        lacks.append("a kernel with huge pages")
    if not shutil.which("dpdk-testpmd"):
        lacks.append("dpdk-testpmd (Debian: dpdk-dev)")
    libdpdk = ["pkg-config", "--exists", "libdpdk"]
    if not (shutil.which("cc") and shutil.which("pkg-config") and subprocess.run(libdpdk, check=False).returncode == 0):
        lacks.append("cc, pkg-config and DPDK's headers (Debian: build-essential, pkg-config, libdpdk-dev)")
    if (os.cpu_count() or 1) < 2:
        lacks.append("two CPUs")
    return "; ".join(lacks)


class Bench:
    """What all programs of one run share: huge pages, a folder for sockets, how they are run. Puts things back at its end."""

    def __init__(self, fifo=None):
        self.fifo = fifo
        self.sockets = 0

    def __enter__(self):
        # Ctrl-C already ends every block in order; so do these.
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda number, _: (_ for _ in ()).throw(SystemExit(128 + number)))
        self.pages_before = int(NR_HUGEPAGES.read_text())
        if self.pages_before < HUGEPAGES:
            NR_HUGEPAGES.write_text(str(HUGEPAGES))
            if int(NR_HUGEPAGES.read_text()) < HUGEPAGES:
                self.give_back_pages()
                raise Failed(f"the kernel has no {HUGEPAGES} huge pages to give: memory is short, or in pieces")
        self.folder = tempfile.TemporaryDirectory(prefix="spinwake-vhost-")
        if self.fifo is not None:
            # This script itself, but not what it starts, must get past them.
            policy = os.SCHED_FIFO | os.SCHED_RESET_ON_FORK
            os.sched_setscheduler(0, policy, os.sched_param(self.fifo + 2))
        return self

    def __exit__(self, *_):
        self.folder.cleanup()
        self.give_back_pages()

    def give_back_pages(self):
        if self.pages_before < HUGEPAGES:
            NR_HUGEPAGES.write_text(str(self.pages_before))

    def path(self, name):
        return Path(self.folder.name) / name

    def socket(self):
        """A path where no socket is yet."""
        self.sockets += 1
        return self.path(f"{self.sockets}.sock")

    def build_peer(self):
        """Builds benches/peers/vhost.c. Returns the program."""
        program = self.path("vhost-peer")
        flags = {
            what: subprocess.run(["pkg-config", what, "libdpdk"], capture_output=True, text=True, check=True).stdout.split()
            for what in ("--cflags", "--libs")
        }
        source = ROOT / "benches/peers/vhost.c"
        command = ["cc", "-O3", "-march=native", *flags["--cflags"], source, "-o", program, *flags["--libs"], "-lm"]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        if run.returncode:
            raise Failed(f"cannot build {source}: {run.stderr}")
        return program


def build(*programs):
    """Builds programs of ours. Returns where they are."""
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    words = [word for program in programs for word in ("--bin", program)]
    subprocess.run(["cargo", "build", "--quiet", "--release", *words], cwd=ROOT, check=True)
    return [target / "release" / program for program in programs]


class Program:
    """A process on one core, whose output is read as it comes."""

    # How much of the name of the thread that spins must be as given; none: the main thread.
    spinner = None

    def __init__(self, bench, core, command):
        self.bench = bench
        # Whatever becomes of this script, no spinning process stays behind.
        words = [str(word) for word in ("setpriv", "--pdeathsig", "KILL", "taskset", "-c", core, *command)]
        self.name = Path(str(command[0])).name
        self.process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
        )
        self.said, self.has_ended, self.news = "", False, threading.Condition()
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()

    @property
    def pid(self):
        return self.process.pid

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.reader.join()
        self.process.stdin.close()
        self.process.stdout.close()

    def read(self):
        """Takes what the program says as it comes: one that cannot write on would stop."""
        while more := os.read(self.process.stdout.fileno(), 65536):
            with self.news:
                self.said += more.decode(errors="replace").replace("\r", "")
                self.news.notify()
        with self.news:
            self.has_ended = True
            self.news.notify()

    def await_line(self, pattern, limit_s=LIMIT_S):
        """Waits until the pattern has been said, and forgets all up to its end. Returns the match."""
        pattern = re.compile(pattern, re.DOTALL)
        deadline = time.monotonic() + limit_s
        with self.news:
            while not (match := pattern.search(self.said)):
                if self.has_ended:
                    raise Failed(f"{self.name} ended with {self.process.wait()}: {self.said[-600:]}")
                if not self.news.wait(max(0, deadline - time.monotonic())) and time.monotonic() >= deadline:
                    said = self.said[-600:]
                    raise Failed(f"{self.name} does not say '{pattern.pattern}' in {limit_s:.0f} s: {said}")
            self.said = self.said[match.end() :]
        return match

    def rest(self, limit_s=LIMIT_S):
        """What it says until it ends by itself. Returns that and its exit code."""
        try:
            code = self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            raise Failed(f"{self.name} does not end in {limit_s:.0f} s: {self.said[-600:]}") from None
        self.reader.join()
        return self.said, code

    def tasks(self):
        """Its threads: their ids and names."""
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            yield int(task.name), (task / "comm").read_text().strip()

    def prioritise(self):
        """On a busy machine: its spinning thread in real-time priority, all others one above, as they have little to do. Not
        before it works: while DPDK's main thread starts others it spins itself, on the same core."""
        if self.bench.fifo is None:
            return
        spins = lambda task, name: name.startswith(self.spinner) and task != self.pid if self.spinner else task == self.pid  # noqa: E731
        # The one that spins comes last: it may wait for another.
        for spinning, task in sorted((spins(*task), task[0]) for task in self.tasks()):
            os.sched_setscheduler(task, os.SCHED_FIFO, os.sched_param(self.bench.fifo + (not spinning)))

    def cpu_ns(self):
        """Nanoseconds that its threads have run, by the kernel's account."""
        return sum(int(Path(f"/proc/{self.pid}/task/{task}/schedstat").read_text().split()[0]) for task, _ in self.tasks())

    def fds(self):
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def resident_kb(self):
        return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{self.pid}/status").read_text())[1])


def eal(core, vdev, main_too, huge=True):
    """DPDK's options. With its main thread idle on the same core, or without one of its own. Without huge pages it reserves
    no more address space than it needs, as valgrind wants it."""
    lcores = f"0@{core},1@{core}" if main_too else f"0@{core}"
    memory = ["--in-memory", "--single-file-segments"] if huge else ["--no-huge"]
    words = ["--lcores", lcores, "--no-pci", *memory, "-m", MEMORY_MIB, "--vdev", vdev]
    return [str(word) for word in words]


def back_end(path, **keys):
    """DPDK's vhost device."""
    return ",".join(["net_vhost0", f"iface={path}", "queues=1", *(f"{key}={value}" for key, value in keys.items())])


def front_end(path, keys="", ring=256):
    """DPDK's virtio-user device."""
    return f"net_virtio_user0,path={path},queues=1,queue_size={ring}{keys}"


class Testpmd(Program):
    """A testpmd with one port, which sends frames back out of it. It takes commands."""

    spinner = "rte-worker"

    def __init__(self, bench, core, vdev, *options, before=(), huge=True):
        command = [*before, "dpdk-testpmd", *eal(core, vdev, True, huge), "--", "-i", "--forward-mode=io", "--nb-cores=1"]
        # It drops what came before its start otherwise.
        command += [f"--burst={BURST}", "--total-num-mbufs=16384", "--no-flush-rx", *options]
        # It answers line by line, even into a pipe.
        super().__init__(bench, core, ["stdbuf", "-oL", *command])
        self.name = "testpmd"
        self.await_line("testpmd> ")
        if "No probed ethernet devices" in self.said:
            raise Failed(f"testpmd has no port {vdev}")

    def do(self, command, answer="testpmd> "):
        """Gives it a command. Returns what it says up to the end of the pattern."""
        self.process.stdin.write(f"{command}\n".encode())
        return self.await_line(f"{re.escape(command)}\\n.*?{answer}")[0]

    def await_link(self):
        deadline = time.monotonic() + LIMIT_S
        while "Link status: up" not in self.do("show port info 0", "Link status: .*?\n"):
            if time.monotonic() > deadline:
                raise Failed("nobody connected to testpmd's port")
            time.sleep(0.05)

    def rate(self, seconds):
        """Frames a second that it receives."""
        stats = r"Rx-pps: .*?Tx-pps: .*?\n"
        self.do("show port stats 0", stats)
        time.sleep(seconds)
        return int(re.search(r"Rx-pps: +(\d+)", self.do("show port stats 0", stats))[1])

    def account(self):
        """Frames received, sent and dropped, and the cycles that a burst with frames took for each, since it started."""
        said = self.do("show fwd stats all", r"Accumulated .*?TX-total: .*?\n.*?\+\+\+\n.*?testpmd> ")
        numbers = re.search(r"RX-packets: (\d+).*?TX-packets: (\d+) +TX-dropped: (\d+)", said, re.DOTALL)
        cycles = re.search(r"CPU cycles/packet=([\d.]+)", said)
        received, sent, dropped = (int(number) for number in numbers.groups())
        return received, sent, dropped, float(cycles[1]) if cycles else 0

    def stop(self):
        self.do("stop", "Done")


class L3fwdPower(Program):
    """DPDK's l3fwd-power with one port. It sends back what is for 1.1.1.0/24. It would write a line for each wake-up: its log
    is set to notices, so that this costs it nothing."""

    def __init__(self, bench, core, vdev, program):
        words = ["--log-level=user1:6", "--", "-p", "1", "--config", "(0,0,0)", "--parse-ptype"]
        super().__init__(bench, core, ["stdbuf", "-oL", program, *eal(core, vdev, False), *words])
        self.name = "l3fwd-power"


class L2fwd(Program):
    """Our l2fwd with one port."""

    spinner = "l2fwd"

    def __init__(self, bench, core, program, spec, *options, wait="poll", before=()):
        self.report = bench.path(f"report-{bench.sockets}-{time.monotonic_ns()}")
        command = [*before, program, "--port", spec, "--core", core, "--wait", wait, "--json", self.report, *options]
        super().__init__(bench, core, command)
        self.name = "l2fwd"
        # Its last words before it works.
        self.await_line("worker .*?\n")

    def end(self, limit_s=LIMIT_S):
        """Ends it as Ctrl-C does. Returns its report."""
        self.process.send_signal(signal.SIGINT)
        said, code = self.rest(limit_s)
        if code != 0:
            raise Failed(f"l2fwd ended with {code}: {said[-600:]}")
        return json.loads(self.report.read_text())


class Peer(Program):
    """The program of benches/peers/vhost.c."""

    def __init__(self, bench, core, program, vdev, mode, *options):
        super().__init__(bench, core, [program, *eal(core, vdev, False), "--log-level=3", "--", mode, *options])
        self.name = "the checking peer"
        if vdev.startswith("net_vhost"):
            self.await_line("listening 1\n")

    def figures(self, limit_s):
        """What it measured, when it has ended. Raises when a frame was lost or spoilt."""
        said, code = self.rest(limit_s)
        figures = {name: float(value) for name, value in re.findall(r"^(\w+) ([\d.]+)$", said, re.MULTILINE)}
        if "received" not in figures:
            raise Failed(f"{self.name} ended with {code}: {said[-600:]}")
        if code != 0:
            raise Failed(f"{self.name}: {verdict(figures)}")
        return figures


def verdict(figures):
    """What became of the frames, in a phrase."""
    names = ("sent", "received", "lost", "corrupted", "strange", "reordered")
    return ", ".join(f"{figures[name]:.0f} {name}" for name in names)
