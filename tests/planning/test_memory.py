"""Training memory on each process: what is divided, what comes on top, and that the parts add up."""

import dataclasses

import pytest

from lit_small_lm.backbone import BackboneSpec
from lit_small_lm.planning import memory
from lit_small_lm.planning.memory import SLACK, divided, training
from lit_small_lm.planning.outline import Outline
from lit_small_lm.planning.rehearsal import StepBytes
from lit_small_lm.planning.workload import Workload
from lit_small_lm.plugin import Dims
from lit_small_lm.training.optim import AdamW

WORKLOAD = Workload(optim=AdamW(), seq_len=16, batch_size=4, rows=4)
GPU = dataclasses.replace(WORKLOAD, accelerator="cuda")
FOUND = StepBytes(
    weights=100,
    gradients=100,
    optimizer=200,
    activations=1000,
    head=50,
    forward=1500,
    backward=1400,
    update=430,
    forward_pooled=1200,
    backward_pooled=1300,
    update_pooled=430,
)
PARTS = [
    field.name for field in dataclasses.fields(memory.TrainingMemory) if field.name not in ("total_bytes", "fullest")
]


def of(workload, **changes):
    return divided(dataclasses.replace(FOUND, **changes), workload)


@pytest.mark.parametrize(
    "workload",
    [
        WORKLOAD,
        GPU,
        dataclasses.replace(GPU, average="ema"),
        dataclasses.replace(GPU, processes=2, batch_size=8),
        dataclasses.replace(WORKLOAD, processes=4, shards=4, batch_size=16),
    ],
)
def test_parts_add_up(workload):
    found = of(workload)
    assert sum(vars(found)[name] for name in PARTS) == found.total_bytes
    assert min(vars(found)[name] for name in PARTS) >= 0


def test_the_fullest_moment_counts():
    assert (of(GPU).total_bytes, of(GPU).fullest) == (1500, "forward pass")
    assert (of(GPU, backward=1700).total_bytes, of(GPU, backward=1700).fullest) == (1700, "backward pass")
    assert of(GPU, update=2000).fullest == "optimizer step"
    assert of(GPU).temporary_bytes == 1500 - 100 - 100 - 200 - 1000 - 50


def test_fsdp_divides_what_is_kept():
    found = of(dataclasses.replace(GPU, processes=4, shards=4, batch_size=16))
    assert (found.weights_bytes, found.gradients_bytes, found.optimizer_bytes) == (25, 25, 50)
    assert found.total_bytes == 1500 - 300
    assert found.activations_bytes == 1000 and found.exchange_bytes == 0


def test_fsdp_makes_layers_whole_in_turn():
    """The table, the layer that runs and the next one; embeddings are tied."""
    dims = Dims(64, 9, 4, 2, 16, 128)
    outline, sharded = (
        Outline(BackboneSpec(), dims, 300),
        dataclasses.replace(GPU, processes=4, shards=4, batch_size=16),
    )
    layer = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128 + 2 * 64
    assert training(outline, sharded).exchange_bytes == 4 * (300 * 64 + 64 + 2 * layer)
    assert training(outline, GPU).exchange_bytes == 0


def test_whole_copies_exchange_their_gradients():
    found = of(dataclasses.replace(GPU, processes=2, batch_size=8))
    assert found.exchange_bytes == 100
    assert found.total_bytes == 1600


def test_an_average_is_one_more_copy_of_the_weights():
    assert of(dataclasses.replace(GPU, average="ema")).total_bytes == 1600


def test_a_checkpoint_in_the_background_is_one_more_copy_of_the_state():
    """A GPU's lies in the host's memory."""
    saved = dataclasses.replace(WORKLOAD, saving="background")
    assert of(saved).copy_bytes == 100 + 200 and of(saved).total_bytes == of(WORKLOAD).total_bytes + 300
    assert of(dataclasses.replace(saved, average="ema")).copy_bytes == 400
    assert of(dataclasses.replace(GPU, saving="background")).copy_bytes == 0


def test_a_heap_keeps_what_is_free():
    """Only of a CPU's heap the share has been measured."""
    assert of(GPU).allocator_bytes == 0
    assert of(WORKLOAD).allocator_bytes == round(SLACK * 1300)
    assert of(WORKLOAD).total_bytes == 1500 + round(SLACK * 1300)


def test_a_small_network_is_more_than_its_state():
    """Parameters times bytes and a hidden state a token, a rule of thumb, is off by an order of magnitude."""
    outline = Outline(BackboneSpec(), Dims(64, 4, 4, 2, 16, 128), 300)
    workload = dataclasses.replace(GPU, seq_len=128, batch_size=8, rows=8)
    found = training(outline, workload)
    rule = found.weights_bytes + 8 * 128 * 64 * 4
    assert found.total_bytes > 10 * rule
    assert found.weights_bytes == found.gradients_bytes and found.activations_bytes > 5 * found.optimizer_bytes


def test_rows_of_a_step_are_shared_out():
    workload = Workload(optim=AdamW(), seq_len=16, batch_size=32, rows=2, processes=4, tensor_parallel=2)
    assert (workload.data_parallel, workload.accumulated) == (2, 8)
