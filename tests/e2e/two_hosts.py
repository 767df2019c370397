"""Two hosts on one machine: network namespaces with host names of their own.

    host 0                                host 1
      data0 --- bridge of the data ---  data0      what ranks say to each other (MPI)
      mgmt0 --- bridge of control  ---  mgmt0      what the launcher says to its daemons
                      |
                 this machine (mpirun)

Needs root and namespaces: `missing` says what is not there.  Names and subnet are fresh for each
set-up, so that two tests can run side by side, and all of it goes away when the process does,
however it ends (but for kill -9: then `ip netns` shows what is left).
"""
import atexit
import glob
import os
import random
import shutil
import signal
import subprocess
import sys

import job

HOSTS = 2
# In place of ssh: the words are options, the host and a command.  Without a host name of its own a
# daemon would be taken for a neighbour, and its ranks' memory for shared.
AGENT = """#!/bin/sh
while [ "${1#-}" != "$1" ]; do shift; done
host=$1
shift
exec ip netns exec "$host" unshare --uts sh -c "hostname $host; $*"
"""


def ip(*words):
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


def missing():
    """Why two hosts cannot be set up here; "" if they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    for tool in ("ip", "unshare", "mpirun"):
        if shutil.which(tool) is None:
            return f"no {tool}"
    if not job.has_mpi():
        return "a build without MPI"
    name = f"sf{os.getpid()}x"
    try:
        ip("netns", "add", name)
    except OSError as error:
        return f"no network namespaces: {error}"
    try:
        ip("-n", name, "link", "add", "br0", "type", "bridge")
        ip("-n", name, "link", "add", "a0", "type", "veth", "peer", "name", "b0")
        subprocess.run(["ip", "netns", "exec", name, "unshare", "--uts", "true"],
                       capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        return f"no bridges, pairs of interfaces or host names in namespaces: {error}"
    finally:
        ip("netns", "del", name)
    return ""


def free_subnet():
    """The first three bytes of a subnet that no interface of this machine is in."""
    taken = ip("-o", "-4", "addr") + ip("-o", "-4", "route")
    while True:
        net = f"10.{random.randrange(64, 128)}.{random.randrange(256)}"
        if net + "." not in taken:
            return net


class Hosts:
    """with Hosts() as hosts: ..."""

    def __init__(self):
        self.name = f"sf{random.randrange(16 ** 5):05x}"
        self.control, self.data = free_subnet(), "10.63.0"
        self.folder = job.Folder()
        self.up = False

    def __enter__(self):
        atexit.register(self.close)
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, lambda got, _: sys.exit(128 + got))
        self.up = True
        for kind in "md":
            ip("link", "add", f"{self.name}{kind}", "type", "bridge")
            ip("link", "set", f"{self.name}{kind}", "up")
        ip("addr", "add", f"{self.control}.254/24", "dev", f"{self.name}m")
        for number in range(HOSTS):
            self.add(number)
        agent = self.folder.file("agent", AGENT)
        os.chmod(agent, 0o755)
        return self

    def add(self, number):
        host = self.host(number)
        ip("netns", "add", host)
        ip("-n", host, "link", "set", "lo", "up")
        for kind, inside, net in (("m", "mgmt0", self.control), ("d", "data0", self.data)):
            outside = f"{self.name}{kind}{number}"
            ip("link", "add", outside, "type", "veth", "peer", "name", inside, "netns", host)
            ip("link", "set", outside, "master", f"{self.name}{kind}", "up")
            ip("-n", host, "addr", "add", f"{net}.{number + 1}/24", "dev", inside)
            ip("-n", host, "link", "set", inside, "up")

    def __exit__(self, *_):
        self.close()

    def close(self):
        if not self.up:
            return
        self.up = False
        atexit.unregister(self.close)
        for number in range(HOSTS):
            host = self.host(number)
            for words in (["netns", "del", host], ["link", "del", f"{self.name}m{number}"],
                          ["link", "del", f"{self.name}d{number}"]):
                subprocess.run(["ip", *words], capture_output=True, check=False)
            for path in glob.glob(f"/dev/shm/vader_segment.{host}.*"):
                os.unlink(path)
            for path in glob.glob(f"/tmp/ompi.{host}.*"):
                shutil.rmtree(path, ignore_errors=True)
        for kind in "md":
            subprocess.run(["ip", "link", "del", f"{self.name}{kind}"], capture_output=True,
                           check=False)
        self.folder.remove()

    def host(self, number):
        return f"{self.name}n{number}"

    def counters(self):
        """{(interface, "bytes" or "packets"): what host 0 has sent and received}: with two hosts,
        all that has gone between them (and, on mgmt0, to the launcher)."""
        files = {(link, unit): [f"/sys/class/net/{link}/statistics/{way}_{unit}"
                                for way in ("tx", "rx")]
                 for link in ("data0", "mgmt0") for unit in ("bytes", "packets")}
        paths = [path for pair in files.values() for path in pair]
        done = subprocess.run(["ip", "netns", "exec", self.host(0), "cat", *paths],
                              capture_output=True, text=True, check=True)
        numbers = dict(zip(paths, map(int, done.stdout.split())))
        return {what: sum(numbers[path] for path in pair) for what, pair in files.items()}

    def run(self, slots, arguments, limit_s=1500, options=()):
        """sheaf under mpirun over both hosts; slots[i]: ranks on host i, in rank order.  It ends
        with the test, whatever ends that."""
        hosts = "".join(f"{self.host(i)} slots={count}\n" for i, count in enumerate(slots))
        line = ["timeout", "-k", "5", str(limit_s), "mpirun",
                "--hostfile", self.folder.file("hosts", hosts),
                "--mca", "plm_rsh_agent", self.folder.file("agent"),
                "--mca", "btl", "tcp,vader,self",
                "--mca", "btl_tcp_if_include", f"{self.data}.0/24",
                "--mca", "oob_tcp_if_include", f"{self.control}.0/24", *options,
                "--bind-to", "none", "-n", str(sum(slots)), job.SHEAF, *arguments]
        with subprocess.Popen(line, env=job.environment(), stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True,
                              start_new_session=True) as process:
            try:
                stdout, stderr = process.communicate()
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGTERM)
                    try:
                        process.wait(10)
                    except subprocess.TimeoutExpired:
                        os.killpg(process.pid, signal.SIGKILL)
        return job.Done(process.returncode, stdout, stderr, 0, None)
