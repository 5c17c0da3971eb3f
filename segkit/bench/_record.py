"""What every measurement carries: the command that made it, the machine, the versions and the date."""

import datetime
import json
import os
import platform
import shlex
import sys
from importlib import metadata
from pathlib import Path

import torch


def stamp(arguments: list[str] | None = None, *, device: torch.device | str = "cpu") -> dict:
    """Where and how a result came about.

    Args:
        arguments: what stands after ``python -m`` in the command; None takes it from ``sys.argv``.
        device: the device that was measured; a GPU adds its name, memory and library versions.

    Returns:
        A dict of plain values with the keys ``command``, ``date`` (UTC, ISO 8601), ``machine``, ``versions``.
    """
    if arguments is None:
        script = Path(sys.argv[0])
        module = script.stem if script.stem != "__main__" else script.parent.name
        arguments = [f"segkit.{module}", *sys.argv[1:]]
    machine = {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    versions = {"python": platform.python_version(), "torch": str(torch.__version__)}
    for package in ("torchvision", "numpy", "segkit"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # run from a checkout, or not needed here
            continue
    device = torch.device(device)
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        machine["gpu"] = properties.name
        machine["gpu_bytes"] = properties.total_memory
        versions["cuda"] = torch.version.cuda
        versions["cudnn"] = torch.backends.cudnn.version()
    return {
        "command": "python -m " + shlex.join(arguments),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine,
        "versions": versions,
    }


def write(path: Path | str, result: dict) -> Path:
    """Write a result as JSON, in one move: a reader never sees half of it. Makes the folder if need be."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")
    unfinished.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    unfinished.replace(path)
    return path


def _processor() -> str:
    """The processor's name; ``platform`` gives only its architecture on Linux."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
