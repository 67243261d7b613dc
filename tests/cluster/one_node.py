"""A SLURM of one node on this machine, without systemd, cgroups and a database.

Needs root and Debian's packages slurm-wlm and munge. The node pretends to have as many cores as a
test wants. Partitions: gpu (default), and urgent, whose jobs put those of gpu back into the queue.
"""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path

CONF = """
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
SlurmctldPort={controller_port}
SlurmdPort={node_port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SchedulerType=sched/backfill
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=10
MinJobAge=3600
MailProg=/bin/true
SchedulerParameters=bf_interval=2,sched_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} CoresPerSocket={cpus} RealMemory={mib} State=UNKNOWN
PartitionName=gpu Nodes={host} Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=urgent Nodes={host} MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "srun", "scontrol", "scancel")


def missing() -> str:
    """Why this machine cannot have one; "" if it can."""
    if os.name != "posix" or os.geteuid() != 0:
        return "starting a SLURM needs root"
    absent = [name for name in PROGRAMS if not shutil.which(name, path=_path())]
    return f"not installed: {', '.join(absent)} (slurm-wlm, munge)" if absent else ""


class OneNode:
    """SLURM's daemons, with their files in a folder.

    Attributes:
        environment: in which its commands find it.
    """

    def __init__(self, folder: Path, cpus: int = 4, mib: int = 64000):
        self.folder, host = folder, socket.gethostname().split(".")[0]
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": _path()}
        for part in ("state", "spool"):
            (folder / part).mkdir(parents=True)
        folder.chmod(0o755)
        key = folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        values = {"host": host, "folder": folder, "cpus": cpus, "mib": mib}
        values |= {"controller_port": _free_port(), "node_port": _free_port()}
        (folder / "slurm.conf").write_text(CONF.format(**values))
        (folder / "cgroup.conf").write_text("CgroupPlugin=autodetect\n")
        files = {name: folder / f"munged.{name}" for name in ("pid", "log", "seed")}
        options = [f"--{name}-file={file}" for name, file in files.items()]
        self.run(
            "munged", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket", *options
        )
        self.run("slurmctld", "-c")
        self.run("slurmd")
        if not self._idle(60):
            logs = [file.read_text()[-1000:] for file in folder.glob("slurm*.log")]
            self.stop()
            raise RuntimeError("SLURM did not start:\n" + "\n".join(logs))

    def run(self, *command: str, cwd: Path | None = None) -> str:
        """The output of one of its commands, which must not fail."""
        done = subprocess.run(
            command,
            env={**os.environ, **self.environment},
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
        return done.stdout

    def state(self, job: str) -> str:
        """Of a job, such as RUNNING."""
        return self.run("squeue", "-h", "-r", "-t", "all", "-j", job, "-o", "%T").strip()

    def last_state(self, job: str) -> str:
        """Of a job, once it has ended."""
        while (state := self.state(job)) in ("PENDING", "RUNNING", "COMPLETING"):
            time.sleep(0.2)
        return state

    def hurry(self) -> None:
        """Jobs that were put back into the queue wait for two minutes: let them start now."""
        for line in self.run("squeue", "-h", "-r", "-t", "PENDING", "-o", "%i %r").splitlines():
            job, reason = line.split(maxsplit=1)
            if reason == "BeginTime":
                with suppress(RuntimeError):  # it has started
                    self.run("scontrol", "update", f"JobId={job}", "StartTime=now")

    def stop(self) -> None:
        """End all jobs, and what was started."""
        with suppress(RuntimeError, subprocess.TimeoutExpired):
            self.run("scancel", "--state=RUNNING")
            self.run("scancel", "--state=PENDING")
            self._idle(20)
        for name in ("slurmd", "slurmctld", "munged"):
            with suppress(OSError, ValueError):
                pid = int((self.folder / f"{name}.pid").read_text())
                os.kill(pid, signal.SIGTERM)
                for _ in range(100):
                    os.kill(pid, 0)  # fails when it has ended
                    time.sleep(0.1)
                os.kill(pid, signal.SIGKILL)

    def _idle(self, seconds: float) -> bool:
        """Wait until the node has nothing to do."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with suppress(RuntimeError):
                if self.run("sinfo", "-h", "-p", "gpu", "-o", "%T").strip() == "idle":
                    return True
            time.sleep(0.5)
        return False


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
