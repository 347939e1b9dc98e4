"""Who may import whom. Each rule keeps one room usable, readable or replaceable without another."""

import pytest

QUIET = (
    "context", "plugin", "spec", "backbone", "nn", "objectives", "samplers", "checkpoint", "shapes", "discovery", "hf",
    "planning",
)  # fmt: skip
"""Rooms that work without Lightning: models load, score and generate with PyTorch alone."""
SHARED_PARTS = {"lit_small_lm.nn.norms", "lit_small_lm.nn.positions", "lit_small_lm.nn.neighbours"}


def within(name, *rooms):
    """Whether a dotted name is one of the rooms or lies in one."""
    return any(name == room or name.startswith(f"{room}.") for room in rooms)


def own(*rooms):
    return tuple(f"lit_small_lm.{room}" for room in rooms)


def offenders(modules, *targets, outside=()):
    """`importer -> target` for every import of one of the targets by a module that is not in `outside`."""
    return sorted(
        f"{name} -> {to}"
        for name, module in modules.items()
        if not within(name, *outside)
        for to in set(module.imports())
        if within(to, *targets)
    )


def test_the_core_never_imports_plugins(core):
    assert offenders(core, "lit_small_lm.plugins", "plugins") == []


def test_plugins_use_contracts_and_parts_only(modules):
    plugins = {name: module for name, module in modules.items() if module.is_plugin}
    allowed = own("plugin", "context", "nn", "plugins")
    found = [line for line in offenders(plugins, "lit_small_lm") if not within(line.split(" -> ")[1], *allowed)]
    assert [line for line in found if not line.endswith("-> lit_small_lm")] == []


@pytest.mark.parametrize("room", QUIET)
def test_lightning_is_not_reached(graph, room):
    names = [name for name in graph.modules if within(name, *own(room))]
    assert names, f"no module lit_small_lm.{room}"
    reached = {inner: graph.modules[inner] for name in names for inner in graph.runs(name)}
    assert offenders(reached, "lightning", "pytorch_lightning", "lightning_fabric") == []


def test_only_the_wrapper_knows_transformers(modules):
    assert offenders(modules, "transformers", outside=own("hf.model")) == []
    assert offenders(modules, "lit_small_lm.hf.model") == []  # it is imported by name, where transformers is installed


def test_only_data_knows_datasets(modules):
    assert offenders(modules, "datasets", outside=own("data")) == []


def test_objectives_and_samplers_call_the_net_they_are_given(core):
    chosen = {name: module for name, module in core.items() if within(name, *own("objectives", "samplers"))}
    assert offenders(chosen, "lit_small_lm.backbone") == []


def test_parts_of_nn_do_not_know_each_other(core):
    chosen = {name: module for name, module in core.items() if within(name, "lit_small_lm.nn")}
    found = offenders(chosen, "lit_small_lm.nn")
    assert [line for line in found if not within(line.split(" -> ")[1], "lit_small_lm.nn", *SHARED_PARTS)] == []
    between = [line.split(" -> ") for line in found]
    assert [f"{a} -> {b}" for a, b in between if b in core and b != "lit_small_lm.nn" and b not in SHARED_PARTS] == []


def test_no_import_cycle(graph):
    assert graph.cycles() == []


# ------------------------------------------------------------------------------------------------ the checks can fail
def test_the_graph_sees_cycles_of_any_length(make_graph):
    ring = {"a": "import b", "b": "def f():\n    from c import x", "c": "import d", "d": "import a", "e": "import a"}
    assert make_graph(ring).cycles() == [["a", "b", "c", "d"]]
    assert make_graph({**ring, "d": "import os"}).cycles() == []


def test_the_graph_sees_what_a_package_runs_on_import(make_graph):
    found = make_graph({"p": "import q", "p.x": "", "q": "import lightning", "u": "from p.x import y"})
    assert found.runs("u") == {"u", "p.x", "p", "q"}
    assert offenders({name: found.modules[name] for name in found.runs("u")}, "lightning") == ["q -> lightning"]


def test_type_checking_imports_are_no_arrows(make_graph):
    found = make_graph({"a": "import typing\nif typing.TYPE_CHECKING:\n    import b", "b": "import a"})
    assert found.cycles() == []
