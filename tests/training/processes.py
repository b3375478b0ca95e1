"""Training in processes of its own, as a shell or a scheduler starts it."""

import os
import queue
import signal
import subprocess
import sys
import threading
from pathlib import Path

HERE = Path(__file__).parent


def environment() -> dict[str, str]:
    """This environment, without what makes Lightning think of a cluster, and with the helpers of tests."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("SLURM", "TILEWISE", "LOCAL_"))
    }
    # One thread each: several processes with as many threads as cores only wait for one another.
    return {**kept, "PYTHONPATH": f"{HERE.parents[1]}{os.pathsep}{HERE}", "OMP_NUM_THREADS": "1"}


def train(*arguments: str, timeout: float = 200) -> subprocess.CompletedProcess[str]:
    """Run `tilewise train` to its end."""
    command = [sys.executable, "-m", "tilewise", "train", *arguments]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=timeout)


def train_and_terminate(*arguments: str, after: str, timeout: float = 200) -> tuple[int, str]:
    """Run `tilewise train`, send SIGTERM once it prints a line with `after`, and return status and output."""
    command = [sys.executable, "-u", "-m", "tilewise", "train", *arguments]
    process = subprocess.Popen(
        command,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    lines: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=_pass_on, args=(process, lines), daemon=True).start()
    output, told = [], False
    try:
        while (line := lines.get(timeout=timeout)) is not None:
            output.append(line)
            if after in line and not told:
                process.send_signal(signal.SIGTERM)
                told = True
        return process.wait(timeout=30), "".join(output)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def _pass_on(process: subprocess.Popen[str], lines: "queue.Queue[str | None]") -> None:
    assert process.stdout is not None
    for line in process.stdout:
        lines.put(line)
    lines.put(None)
