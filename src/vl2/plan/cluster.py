"""What a cluster can do: devices, memory, bandwidths, and the part of the peak rate that each kind of work reaches.

Bytes and operations per second, one way. The efficiencies are assumptions about kernels alone: bubbles, communication
and uneven loads are simulated and come on top.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vl2.errors import UserError

MAX_GPUS = 100_000  # more would be searched for hours


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """A number of equal devices in equal machines."""

    num_gpus: int
    gpus_per_node: int = 8
    memory_bytes: float
    peak_flops: float  # dense bfloat16
    node_bandwidth: float  # between devices of one machine, of one device
    network_bandwidth: float  # between machines, of one machine
    latency_s: float = 10e-6  # of one message
    value_bytes: int = 2  # of a weight that is gathered and of an activation: bfloat16
    dense_efficiency: float = 0.45  # encoder, adaptor, attention, head
    expert_efficiency: float = 0.35  # grouped products of small matrices
    weights_efficiency: float = 1.0  # of the bandwidth, gathering weights and summing gradients, with their copies
    overlap: float = 0.5  # part of the weights' communication that computing hides

    def __post_init__(self) -> None:
        if not (1 <= self.num_gpus <= MAX_GPUS and self.gpus_per_node >= 1):
            raise UserError(
                f"a cluster has 1 to {MAX_GPUS:,} GPUs, got {self.num_gpus} in machines of {self.gpus_per_node}"
            )
        for name in ("memory_bytes", "peak_flops", "node_bandwidth", "network_bandwidth", "weights_efficiency"):
            if getattr(self, name) <= 0:
                raise UserError(
                    f"{name.replace('_', ' ')} of the cluster must be positive, got {getattr(self, name):g}"
                )
        for name in ("dense_efficiency", "expert_efficiency"):
            if not 0 < getattr(self, name) <= 1:
                raise UserError(f"{name.replace('_', ' ')} must be in 0..1, got {getattr(self, name):g}")
        if not 0 <= self.overlap <= 1:
            raise UserError(f"overlap must be in 0..1, got {self.overlap:g}")

    def bandwidth(self, num_ranks: int) -> float:
        """Return what one device gets when so many neighbours exchange with one another."""
        if num_ranks <= self.gpus_per_node:
            return self.node_bandwidth
        return min(self.node_bandwidth, self.network_bandwidth / self.gpus_per_node)


@dataclass(frozen=True, kw_only=True)
class Device:
    """A kind of device, with the machines that it usually comes in. From the makers' data sheets."""

    memory_bytes: float
    peak_flops: float
    node_bandwidth: float
    network_bandwidth: float


DEVICES: Mapping[str, Device] = {
    # PCIe cards in machines with one 200 Gb/s adapter; and the two kinds with NVLink and one 200 or 400 Gb/s each.
    "a100-pcie": Device(memory_bytes=40e9, peak_flops=312e12, node_bandwidth=24e9, network_bandwidth=25e9),
    "a100": Device(memory_bytes=80e9, peak_flops=312e12, node_bandwidth=300e9, network_bandwidth=200e9),
    "h100": Device(memory_bytes=80e9, peak_flops=989e12, node_bandwidth=450e9, network_bandwidth=400e9),
    "h200": Device(memory_bytes=141e9, peak_flops=989e12, node_bandwidth=450e9, network_bandwidth=400e9),
}
