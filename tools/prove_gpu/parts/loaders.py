"""Speed and correctness of the loaders of weights, from a tmpfs, the page cache and a disk."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tools.prove_gpu.parts.outcome import end, require_cuda

FILE_MIB, TENSOR_MIB = 4096, 512
MOST_FILES = 10
MARGIN = 0.3
"""Share of the free memory and disk that the files may take."""


def main() -> None:
    """Load the same files from each place by each loader; the checksums must be equal."""
    torch = require_cuda()
    try:
        from safetensors.torch import save_file  # noqa: PLC0415 - its absence is a result
        from vllm.model_executor.model_loader import weight_utils  # noqa: PLC0415
    except ImportError as error:
        end("missing", f"this Python has no vLLM ({error})")
    disk = Path(sys.argv[1])
    until = time.monotonic() + float(os.environ.get("PROVE_GPU_SECONDS", "150"))
    free = min(shutil.disk_usage(disk).free, shutil.disk_usage("/dev/shm").free, torch.cuda.mem_get_info()[0])  # noqa: S108
    count = min(MOST_FILES, int(free * MARGIN / 2**20 / FILE_MIB))
    if count < 1:
        end(
            "missing",
            f"{FILE_MIB} MiB of files need {FILE_MIB / MARGIN / 1024:.0f} GiB free on disk, in RAM and card",
        )
    figures: dict[str, Any] = {"gigabytes": count * FILE_MIB * 2**20 / 1e9, "missing": {}, "GB_per_s": {}}
    with tempfile.TemporaryDirectory(dir="/dev/shm") as memory:
        files = [disk / f"{number}.safetensors" for number in range(count)]
        wanted = _write(torch, save_file, files)
        copies = [Path(shutil.copy(file, memory)) for file in files]
        places = {"tmpfs": copies, "page cache": files, "disk": files}
        for place, paths in places.items():
            for name, load in _loaders(weight_utils).items():
                if time.monotonic() > until:
                    figures["skipped"] = f"the time ended before {name} from {place}"
                    end("passed" if figures["GB_per_s"] else "missing", figures.get("skipped", ""), **figures)
                if place == "disk":
                    _drop(paths)
                try:
                    seconds, sums = _timed(torch, load, paths)
                except (ImportError, ModuleNotFoundError) as error:
                    figures["missing"][name] = str(error)[:200]
                    continue
                if sums != wanted:
                    end("failed", f"{name} from {place} read other weights than were written", **figures)
                figures["GB_per_s"][f"{name} from {place}"] = round(figures["gigabytes"] / seconds, 2)
    end("passed", **figures)


def _write(torch: Any, save_file: Callable[..., None], files: list[Path]) -> dict[str, int]:
    sums = {}
    for number, file in enumerate(files):
        tensors = {}
        for part in range(FILE_MIB // TENSOR_MIB):
            key = f"w{number}.{part}"
            tensors[key] = torch.randint(0, 255, (TENSOR_MIB * 2**20,), dtype=torch.uint8, device="cuda").cpu()
            sums[key] = int(tensors[key].sum(dtype=torch.int64))
        save_file(tensors, file)
    os.sync()
    return sums


def _loaders(utils: Any) -> dict[str, Callable[[list[str]], Iterator[tuple[str, Any]]]]:
    return {
        "auto": lambda files: utils.safetensors_weights_iterator(files, False),
        "eight threads": lambda files: utils.multi_thread_safetensors_weights_iterator(files, False, max_workers=8),
        "fastsafetensors": lambda files: utils.fastsafetensors_weights_iterator(files, False),
        "instanttensor": lambda files: utils.instanttensor_weights_iterator(files, False),
    }


def _timed(
    torch: Any, load: Callable[[list[str]], Iterator[tuple[str, Any]]], paths: list[Path]
) -> tuple[float, Any]:
    sums = {}
    began = time.monotonic()
    for key, tensor in load([str(path) for path in paths]):
        on_card = tensor.to("cuda")
        sums[key] = on_card.sum(dtype=torch.int64)
        del on_card, tensor
    torch.cuda.synchronize()
    seconds = time.monotonic() - began
    return seconds, {key: int(value) for key, value in sums.items()}


def _drop(paths: list[Path]) -> None:
    """Remove the files from the page cache."""
    for path in paths:
        number = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(number, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(number)


if __name__ == "__main__":
    main()
