"""Devices: dense rates under the names that torch knows them by, and bills that follow from them."""

import pytest

from lit_small_lm.errors import RequestError
from lit_small_lm.planning import devices
from lit_small_lm.planning.devices import DEVICES, Device, bill, by_name, decode_limit, detected

DENSE = {
    "NVIDIA H200": 989e12, "NVIDIA H200 NVL": 836e12, "NVIDIA H100 80GB HBM3": 989e12, "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12, "NVIDIA A100-SXM4-80GB": 312e12, "NVIDIA A100-SXM4-40GB": 312e12, "NVIDIA B200": 2.25e15,
    "NVIDIA GB200": 2.5e15, "NVIDIA L4": 121e12, "NVIDIA L40S": 362e12, "NVIDIA A40": 149.7e12,
    "NVIDIA GeForce RTX 3090": 71e12, "NVIDIA GeForce RTX 4090": 165.2e12, "NVIDIA GeForce RTX 5090": 209.5e12,
}  # fmt: skip
TOY = Device("toy", ("Toy",), {"bf16": 1e12}, 2**30, 1e11, 100.0, "nowhere")


@pytest.mark.parametrize("name", DENSE)
def test_dense_bf16(name):
    """The figures that torchtitan and nanochat agree on."""
    assert detected(name).peak("bf16") == DENSE[name]


def test_names():
    assert by_name("h200") == by_name("H200") == by_name("NVIDIA H200") == detected("NVIDIA H200")
    names = [name.lower() for device in DEVICES for name in (device.name, *device.detected)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("name", ["NVIDIA H300", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", ""])
def test_an_unknown_device_has_no_rate(name):
    assert detected(name) is None


def test_a_mistyped_device():
    with pytest.raises(RequestError, match="rtx4090.*did you mean rtx-4090"):
        by_name("rtx4090")


@pytest.mark.parametrize("device", DEVICES, ids=lambda device: device.name)
def test_rows_are_whole(device):
    """fp16 is as fast as bf16 and about twice as fast as tf32 and more; a row that is off by a factor shows."""
    assert device.peaks["fp16"] == device.peaks.get("bf16", device.peaks["fp16"])
    assert device.peaks["fp16"] >= 1.99 * device.peaks["fp32"]
    if "tf32" in device.peaks:
        assert device.peaks["tf32"] == pytest.approx(device.peaks["bf16"] / 2, rel=0.02)
    assert device.memory >= 16 * 2**30 and 1e11 < device.bandwidth < 1e13 and 50 < device.power < 1500
    assert device.source


def test_arithmetic_that_a_device_lacks():
    with pytest.raises(RequestError, match="t4: no bf16 rate is known; known: fp16, fp32"):
        by_name("t4").peak("bf16")


def test_precisions_of_the_trainer():
    assert [devices.ARITHMETIC_OF[p] for p in ("bf16-mixed", "16-mixed", "32-true")] == ["bf16", "fp16", "fp32"]


def test_bill():
    found = bill(7.2e15, TOY, utilisation=0.5, power_share=0.8, price=3.0)
    assert found.seconds == pytest.approx(4 * 3600)
    assert found.kwh == pytest.approx(4 * 0.1 * 0.8)
    assert found.cost == pytest.approx(12)


def test_more_devices_take_less_time_and_the_same_energy():
    one, four = (bill(1e18, by_name("h100"), count=count, price=2.0) for count in (1, 4))
    assert four.seconds == pytest.approx(one.seconds / 4)
    assert (four.kwh, four.cost) == pytest.approx((one.kwh, one.cost))


@pytest.mark.parametrize(("option", "value"), [("utilisation", 0), ("utilisation", 1.1), ("power_share", -0.5)])
def test_shares_have_a_range(option, value):
    with pytest.raises(RequestError, match=f"{option}: {value}; allowed: a share above 0, at most 1"):
        bill(1e18, TOY, **{option: value})


def test_decoding_is_limited_by_memory():
    assert decode_limit(TOY, weight_bytes=9e8, cache_bytes=1e8) == pytest.approx(100)
    assert decode_limit(TOY, weight_bytes=9e8, cache_bytes=1e8, batch=11) == pytest.approx(550)


def test_the_processor_is_measured():
    cpu = devices.this_cpu(size=128, seconds=0.01)
    assert set(cpu.peaks) == {"fp32", "bf16"} and all(rate > 1e6 for rate in cpu.peaks.values())
    assert cpu.source.startswith("measured: products of 128 x 128")
    found = bill(1e9, cpu, "fp32", price=1.0)
    assert found.seconds > 0 and found.kwh is None and found.cost > 0
    assert decode_limit(cpu, 1e9, 0) is None
    assert by_name("cpu").name == "cpu"
