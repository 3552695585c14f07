"""Have gloo use the network by which Ray's nodes reach one another, NCCL tell what its ranks waited for, CPUs use large pages.

Unless GLOO_SOCKET_IFNAME names an interface, gloo gives the other ranks the address of the node's own host name. Debian and
Ubuntu resolve that to 127.0.1.1, where no other node can reach it: "Gloo connectFullMesh failed: Connection refused".

`_TorchBackend` is private to Ray. When tests/unit/train/test_compat_ray_train.py fails with another Ray: read
ray/train/torch/config.py and set the variables in every worker before `init_process_group`.
"""

import logging
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import ray
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend

INTERFACE = "GLOO_SOCKET_IFNAME"
# Of torch's flight recorder: the number of collectives that a rank remembers; write them when one has timed out; and where to.
RECORDER = {"TORCH_FR_BUFFER_SIZE": "2000", "TORCH_NCCL_DUMP_ON_TIMEOUT": "1"}
RECORDER_FILES = "TORCH_FR_DUMP_TEMP_FILE"

logger = logging.getLogger(__name__)


@dataclass
class NodeTorchConfig(TorchConfig):
    """TorchConfig whose gloo uses, on several nodes, the interface with the address that Ray knows the node by.

    traces: folder that all nodes see, where NCCL's ranks write their last collectives when one has timed out; "" = none.
    """

    traces: str = ""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """Return what sets up the process group."""
        return NodeBackend


class NodeBackend(_TorchBackend):
    """Sets the variables in every worker before the process group is set up."""

    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        """Set up the process group."""
        # Not at the top: torch.distributed comes with it, which the driver does without.
        from ual_ray.train.compat_torch import reuse_freed_memory, use_large_pages

        if backend_config.backend == "gloo":
            worker_group.execute(use_large_pages)
            worker_group.execute(reuse_freed_memory)
        if len(set(worker_group.execute(ray.util.get_node_ip_address))) > 1:
            worker_group.execute(use_interface_of_node)
        if isinstance(backend_config, NodeTorchConfig) and backend_config.traces:
            worker_group.execute(record_collectives, backend_config.traces)
        super().on_start(worker_group, backend_config)


def use_interface_of_node() -> None:
    """Set GLOO_SOCKET_IFNAME unless it is set."""
    address = ray.util.get_node_ip_address()
    name = interface_of(address, psutil.net_if_addrs())
    if name is None:
        logger.warning("no network interface has the address of this node, %s; %s is not set", address, INTERFACE)
    else:
        os.environ.setdefault(INTERFACE, name)


def record_collectives(folder: str) -> None:
    """Set the variables of torch's flight recorder unless they are set; folder: of the files, one per rank."""
    for name, value in (RECORDER | {RECORDER_FILES: f"{folder}/rank_"}).items():
        os.environ.setdefault(name, value)


def interface_of(address: str, interfaces: Mapping[str, Sequence[Any]]) -> str | None:
    """Return the interface that has an IP address; None if there is none. interfaces: as psutil.net_if_addrs() lists them."""
    families = (socket.AF_INET, socket.AF_INET6)
    for name, addresses in interfaces.items():
        # A link-local IPv6 address has the interface behind it: fe80::1%eth0.
        if any(one.family in families and one.address.split("%")[0] == address for one in addresses):
            return name
    return None
