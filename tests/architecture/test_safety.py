"""What could run code that a file holds, checked on the syntax trees of package and plug-ins."""

import ast

import pytest

RUNS = {"eval", "exec", "compile", "__import__", "execfile"}
"""Built-in functions that run text; of these names only methods are called (`net.eval()`, `re.compile`)."""
READERS = {
    "pickle",
    "dill",
    "cloudpickle",
    "joblib",
    "shelve",
    "marshal",
    "runpy",
    "code",
    "codeop",
    "tarfile",
    "zipfile",
}
PICKLE = {"lit_small_lm.checkpoint", "lit_small_lm.hf.pickles", "lit_small_lm.data.worker"}
"""They name errors of pickle; the last one sends our own objects to our own process."""
SHELLS = {"subprocess": {"lit_small_lm.data.worker", "lit_small_lm.cli.processes", "lit_small_lm.kernels.building"}}
IMPORTERS = {"import_module", "spec_from_file_location", "exec_module", "load_module", "find_spec"}
MAY_IMPORT = {
    "lit_small_lm", "lit_small_lm.__main__", "lit_small_lm.discovery", "lit_small_lm.cli.completion",
    "lit_small_lm.cli.analyze", "lit_small_lm.cli.checks", "lit_small_lm.cli.run_options", "lit_small_lm.hf",
    "lit_small_lm.hf.exporting",
}  # fmt: skip
"""All but `discovery` import names that stand in our own source; it imports what a user or an installation names."""
YAML = {"safe_load", "safe_load_all", "safe_dump", "compose", "dump", "YAMLError", "SafeLoader"}


def calls(module):
    """Every call with its dotted name."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def given(node, name):
    return next((ast.unparse(keyword.value) for keyword in node.keywords if keyword.arg == name), None)


def rules(name, node):
    """Whether each of the things that could run what a file holds is done by this call."""
    room, _, last = name.rpartition(".")
    yield name in RUNS or name.startswith(("os.system", "os.popen", "os.exec", "os.spawn"))
    yield name in ("torch.load", "load_from_checkpoint") and given(node, "weights_only") != "True"
    yield room in ("np", "numpy") and given(node, "allow_pickle") not in (None, "False")
    yield name in ("np.load", "numpy.load") and len(node.args) > 1
    yield room == "yaml" and last not in YAML
    yield any(given(node, option) not in (None, "False") for option in ("trust_remote_code", "shell"))


def unsafe(module):
    """Calls that could run what a file holds."""
    return [node for name, node in calls(module) if any(rules(name, node))]


def test_nothing_runs_what_a_file_holds(modules):
    assert [module.at(node) for module in modules.values() for node in unsafe(module)] == []


def test_readers_of_pickles_and_archives_are_few(modules):
    found = {name for name, module in modules.items() if READERS & {to.split(".")[0] for to in module.imports()}}
    assert found <= PICKLE, "pickles and archives are read nowhere else"
    users = {name for name in found for called, _ in calls(modules[name]) if called.startswith("pickle.")}
    assert users == set(), "pickle is imported for its errors"


def test_processes_are_started_in_few_places(modules):
    for library, rooms in SHELLS.items():
        assert {name for name, m in modules.items() if library in set(m.imports())} <= rooms


def test_modules_are_imported_by_name_in_few_places(modules):
    found = {name for name, m in modules.items() for called, _ in calls(m) if called.rpartition(".")[2] in IMPORTERS}
    assert found <= MAY_IMPORT, "a name from a file must never be imported"


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("torch.load(f)", 1),
        ("torch.load(f, weights_only=False)", 1),
        ("torch.load(f, weights_only=flag)", 1),
        ("torch.load(f, map_location='cpu', weights_only=True)", 0),
        ("np.load(f, allow_pickle=True)", 1),
        ("np.load(f, None, True)", 1),
        ("np.load(f, mmap_mode='r')", 0),
        ("yaml.load(f)\nyaml.full_load(f)\nyaml.unsafe_load(f)", 3),
        ("eval(x)\nexec(x)\n__import__(x)", 3),
        ("net.eval()\nre.compile(x)", 0),
        ("os.system(x)\nsubprocess.run(x, shell=True)", 2),
        ("load_dataset(x, trust_remote_code=True)", 1),
    ],
)
def test_the_check_can_fail(make_graph, source, count):
    assert len(unsafe(make_graph({"a": source}).modules["a"])) == count
