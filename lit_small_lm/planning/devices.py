"""Devices: dense peak rates, memory, bandwidth and power, and the time, energy and money that FLOPs take on them.

The one trick is to count dense tensor-core rates with float32 accumulation only: makers print twice as much under an
asterisk (2:4 sparsity), and general-purpose tables have mixed the two. A device that is not in the table has no rate,
rather than a guessed one; a CPU has the one that it is measured at.
"""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from lit_small_lm.errors import RequestError, not_known, shown
from lit_small_lm.planning.statement import Statement

Arithmetic = Literal["bf16", "fp16", "tf32", "fp32"]
"""What a matrix product is computed in; fp32 without the tensor cores' tf32."""
UTILISATION = 0.35
"""Share of the dense peak that a training run is taken to reach, unless another is asked for."""
POWER_SHARE = 0.8
"""Share of the board power that a training device is taken to draw, unless another is asked for."""
ASSUMED = Statement(
    f"a run reaches {UTILISATION:.0%} of the dense peak and draws {POWER_SHARE:.0%} of the board power unless other "
    "shares are given",
    doubt="both are assumptions: small networks and short rows reach less, and a measured run is the only proof",
)
GIB = 2**30


@dataclass(frozen=True)
class Device:
    """One accelerator, or a CPU as measured."""

    name: str
    """The short name that `--device` takes."""
    detected: tuple[str, ...]
    """What torch.cuda.get_device_name calls it."""
    peaks: Mapping[str, float]
    """Arithmetic -> dense FLOPs per second; one it lacks is left out."""
    memory: float | None
    """Bytes of memory as its maker counts them; the driver keeps up to 7 % for itself."""
    bandwidth: float | None
    """Bytes per second between memory and chip."""
    power: float | None
    """Watts of the board at most."""
    source: str

    def peak(self, arithmetic: Arithmetic) -> float:
        """Dense FLOPs per second. Raises RequestError for an arithmetic that the device lacks."""
        if arithmetic not in self.peaks:
            raise RequestError(f"device {self.name}: no {arithmetic} rate is known; known: {', '.join(self.peaks)}")
        return self.peaks[arithmetic]


@dataclass(frozen=True)
class Bill:
    """What a number of FLOPs takes on devices of one kind."""

    seconds: float
    kwh: float | None
    """Kilowatt-hours of the boards alone; None where their power is not known."""
    cost: float | None
    """In the currency of the price; None without one."""


def _row(name, detected, bf16, fp16, tf32, fp32, gib, gigabytes_per_second, watts, source) -> Device:
    rates = {"bf16": bf16, "fp16": fp16, "tf32": tf32, "fp32": fp32}
    peaks = {arithmetic: rate * 1e12 for arithmetic, rate in rates.items() if rate}
    names = tuple(detected.split("|"))
    return Device(name, names, peaks, gib * GIB, gigabytes_per_second * 1e9, watts, source)


_NVIDIA, _GA102 = "nvidia.com/en-us/data-center/", "NVIDIA Ampere GA102 whitepaper"
_ADA, _BLACKWELL = "NVIDIA Ada GPU architecture whitepaper", "NVIDIA RTX Blackwell GPU architecture whitepaper"
_AMD = "AMD Instinct data sheet"
DEVICES = (
    #    name             as torch names it                 bf16   fp16   tf32   fp32   GiB  GB/s  W     source
    _row("gb200", "NVIDIA GB200", 2500, 2500, 1250, 80, 186, 8000, 1200, _NVIDIA + "gb200-nvl72"),
    _row("b200", "NVIDIA B200", 2250, 2250, 1125, 75, 180, 7700, 1000, _NVIDIA + "hgx"),
    _row("h200", "NVIDIA H200", 989, 989, 494.5, 67, 141, 4800, 700, _NVIDIA + "h200"),
    _row("h200-nvl", "NVIDIA H200 NVL", 836, 836, 418, 60, 141, 4800, 600, _NVIDIA + "h200"),
    _row("h100", "NVIDIA H100 80GB HBM3", 989, 989, 494.5, 67, 80, 3350, 700, _NVIDIA + "h100"),
    _row("h100-nvl", "NVIDIA H100 NVL", 835, 835, 417.5, 60, 94, 3900, 400, _NVIDIA + "h100"),
    _row("h100-pcie", "NVIDIA H100 PCIe", 756, 756, 378, 51, 80, 2000, 350, _NVIDIA + "h100"),
    _row("a100-80gb", "NVIDIA A100-SXM4-80GB", 312, 312, 156, 19.5, 80, 2039, 400, _NVIDIA + "a100"),
    _row("a100-80gb-pcie", "NVIDIA A100 80GB PCIe", 312, 312, 156, 19.5, 80, 1935, 300, _NVIDIA + "a100"),
    _row("a100-40gb", "NVIDIA A100-SXM4-40GB", 312, 312, 156, 19.5, 40, 1555, 400, _NVIDIA + "a100"),
    _row("a100-40gb-pcie", "NVIDIA A100-PCIE-40GB", 312, 312, 156, 19.5, 40, 1555, 250, _NVIDIA + "a100"),
    _row("a40", "NVIDIA A40", 149.7, 149.7, 74.8, 37.4, 48, 696, 300, _NVIDIA + "a40"),
    _row("a30", "NVIDIA A30", 165, 165, 82, 10.3, 24, 933, 165, _NVIDIA + "products/a30-gpu"),
    _row("a10", "NVIDIA A10", 125, 125, 62.5, 31.2, 24, 600, 150, _NVIDIA + "products/a10-gpu"),
    _row("l40s", "NVIDIA L40S", 362, 362, 183, 91.6, 48, 864, 350, _NVIDIA + "l40s"),
    _row("l40", "NVIDIA L40", 181, 181, 90.5, 90.5, 48, 864, 300, _NVIDIA + "l40"),
    _row("l4", "NVIDIA L4", 121, 121, 60, 30.3, 24, 300, 72, _NVIDIA + "l4"),
    _row("t4", "Tesla T4", None, 65, None, 8.1, 16, 320, 70, _NVIDIA + "tesla-t4"),
    _row("v100-32gb", "Tesla V100-SXM2-32GB", None, 125, None, 15.7, 32, 900, 300, _NVIDIA + "v100"),
    _row("v100-16gb", "Tesla V100-SXM2-16GB", None, 125, None, 15.7, 16, 900, 300, _NVIDIA + "v100"),
    _row("rtx-5090", "NVIDIA GeForce RTX 5090", 209.5, 209.5, 104.8, 104.8, 32, 1792, 575, _BLACKWELL),
    _row("rtx-4090", "NVIDIA GeForce RTX 4090", 165.2, 165.2, 82.6, 82.6, 24, 1008, 450, _ADA),
    _row("rtx-3090", "NVIDIA GeForce RTX 3090", 71, 71, 35.6, 35.6, 24, 936, 350, _GA102),
    _row("rtx-a6000", "NVIDIA RTX A6000", 154.8, 154.8, 77.4, 38.7, 48, 768, 300, _GA102),
    _row("rtx-6000-ada", "NVIDIA RTX 6000 Ada Generation", 364.2, 364.2, 182.1, 91.1, 48, 960, 300, _ADA),
    _row("mi300x", "AMD Instinct MI300X", 1307.4, 1307.4, 653.7, 163.4, 192, 5300, 750, _AMD),
    _row("mi325x", "AMD Instinct MI325X", 1307.4, 1307.4, 653.7, 163.4, 256, 6000, 1000, _AMD),
)  # fmt: skip
"""Dense rates in TFLOP/s: torchtitan and nanochat agree on the bf16 ones they have."""
ARITHMETIC_OF: Mapping[str, Arithmetic] = {
    "bf16-mixed": "bf16", "bf16-true": "bf16", "bf16": "bf16",
    "16-mixed": "fp16", "16-true": "fp16", "16": "fp16",
    "32-true": "fp32", "32": "fp32",
}  # fmt: skip
"""`trainer.precision` -> what matrix products are computed in; 32 becomes tf32 where that is switched on."""


def by_name(name: str) -> Device:
    """The device a user names: a short name, torch's name of it, or cpu, which is measured there and then.

    Raises:
        RequestError: not in the table; the message has the known short names and the nearest.
    """
    known = {device.name: device for device in DEVICES}
    wanted = name.strip().lower()
    if wanted == "cpu":
        return this_cpu()
    found = known.get(wanted) or detected(name)
    if found is None:
        raise not_known("device", name, [*known, "cpu"], "device")
    return found


def detected(name: str) -> Device | None:
    """The device torch.cuda.get_device_name calls so; None for one that is not in the table or a slice of one."""
    wanted = name.strip().lower()
    return next((device for device in DEVICES for known in device.detected if known.lower() == wanted), None)


def this_cpu(size: int = 1024, seconds: float = 0.2) -> Device:
    """This machine's processor, at the rates that torch multiplies two square matrices here, now."""
    kinds = {"fp32": torch.float32, "bf16": torch.bfloat16}
    peaks = {name: _measured(dtype, size, seconds) for name, dtype in kinds.items()}
    source = f"measured: products of {size} x {size} matrices on {torch.get_num_threads()} threads of {os.cpu_count()}"
    return Device("cpu", (), peaks, None, None, None, source)


def _measured(dtype: torch.dtype, size: int, seconds: float) -> float:
    a, b = torch.ones(size, size, dtype=dtype), torch.ones(size, size, dtype=dtype)
    a @ b
    started, count = time.perf_counter(), 0
    while (passed := time.perf_counter() - started) < seconds or not count:
        a @ b
        count += 1
    return 2 * size**3 * count / passed


def bill(
    flops: float,
    device: Device,
    arithmetic: Arithmetic = "bf16",
    *,
    utilisation: float = UTILISATION,
    count: int = 1,
    power_share: float = POWER_SHARE,
    price: float | None = None,
) -> Bill:
    """Time, energy and money of `flops` on `count` devices, at a share of their dense peak and board power.

    Args:
        price: of one device for one hour, in any currency.

    Raises:
        RequestError: a share outside (0, 1], or an arithmetic that the device lacks.
    """
    seconds = flops / rate(device, arithmetic, utilisation, count)
    hours = count * seconds / 3600
    _check("power_share", power_share)
    kwh = None if device.power is None else hours * device.power * power_share / 1000
    return Bill(seconds, kwh, None if price is None else hours * price)


def rate(device: Device, arithmetic: Arithmetic, utilisation: float = UTILISATION, count: int = 1) -> float:
    """FLOPs per second of `count` devices at a share of their dense peak. Raises RequestError as `bill`."""
    _check("utilisation", utilisation)
    return count * device.peak(arithmetic) * utilisation


def decode_limit(device: Device, weight_bytes: float, cache_bytes: float, batch: int = 1) -> float | None:
    """Tokens per second that decoding cannot exceed: every step reads all weights once and each row's cache.

    Args:
        weight_bytes: of the weights a step reads; of a mixture of experts those of the experts that are used.
        cache_bytes: of one row's decoding memory.
    """
    if device.bandwidth is None:
        return None
    return batch * device.bandwidth / (weight_bytes + batch * cache_bytes)


def _check(what: str, share: float) -> None:
    if not 0 < share <= 1:
        raise RequestError(f"{what}: {shown(share)}; allowed: a share above 0, at most 1")
