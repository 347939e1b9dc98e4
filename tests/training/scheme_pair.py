"""Run as `scheme_pair.py RANK PORT`: one of two processes that train every family of `norm_schemes` sharded.

Each family takes a step under an autoregressive and one under a diffusion objective, from the meta device, on both
processes and, on the first of them, once more whole. That one prints, as JSON, how far the weights are apart at most.
"""

import json
import os
import runpy
import sys
from pathlib import Path

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh

from lit_small_lm.backbone import Backbone
from lit_small_lm.batch import Batch, Specials
from lit_small_lm.objectives.masked_diffusion import MaskedDiffusion
from lit_small_lm.objectives.next_token import NextToken
from lit_small_lm.plugin import Dims
from lit_small_lm.sharding import whole
from lit_small_lm.training.optim import AdamW
from lit_small_lm.training.parallel import FSDP2
from lit_small_lm.training.score import weighted_sum

DIMS = Dims(dim=16, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=8, hidden=24)
ROWS, LENGTH = 4, 12
OBJECTIVES = (NextToken(), MaskedDiffusion())
"""Of each step."""


def strategy():
    """FSDP2 as Lightning sets it up, over two processes on the CPU."""
    made = FSDP2()
    made.parallel_devices, made.cluster_environment = [torch.device("cpu")] * 2, None
    made._device_mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("data_parallel", "tensor_parallel"))
    return made


def batch_of(rows):
    """Those rows of the batch, each at its place."""
    tokens = torch.randint(3, 32, (ROWS, LENGTH + 1), generator=torch.Generator().manual_seed(1))
    numbers = torch.arange(ROWS)
    docs = numbers.unsqueeze(1).expand(tokens.shape)
    return Batch(tokens[rows], docs[rows], None, numbers[rows], numbers[rows], Specials(32, end=0, pad=1, mask=2))


def trained(family, rows, sharding=None):
    """The weights after the steps on these rows."""
    with torch.device("meta"):
        net = Backbone(family, DIMS, 32).double()
    if sharding is None:
        net.to_empty(device="cpu")
    else:
        sharding.shard(net)
    torch.manual_seed(0)
    net.init_weights()
    optimizer = AdamW(lr=0.01).build(list(net.named_roles()), fused=False)
    for step, objective in enumerate(OBJECTIVES):
        query = objective.query(batch_of(rows), (0, step))
        optimizer.zero_grad()
        ctx = query.context(torch.tensor(step))
        (weighted_sum(net(query.tokens, ctx, query.targets, query.scored), query) / query.tokens.numel()).backward()
        optimizer.step()
    return [whole(parameter.detach()) for parameter in net.parameters()]


def main(rank, port):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    distributed.init_process_group("gloo", rank=rank, world_size=2)
    families = runpy.run_path(str(Path(__file__).parents[1] / "norm_schemes.py"))["FAMILIES"]
    sharding, half = strategy(), slice(2 * rank, 2 * rank + 2)
    for name, family in families.items():
        found = trained(family, half, sharding)
        if rank == 0:
            off = max((a - b).abs().max().item() for a, b in zip(found, trained(family, slice(None)), strict=True))
            print(json.dumps({"family": name, "off": off}), flush=True)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
