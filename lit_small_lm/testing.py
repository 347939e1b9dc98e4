"""The contract suite: `check(spec)` tells whether a Spec keeps what its kind promises.

It works on any final Spec, yours included: put `check(MyScheme())` into a test. The name of a contract in an error
message is the name of the function, below, in `testing_network` or in `testing_samplers`, that tries it.
"""

import ast
import dataclasses
import functools
import inspect
import itertools
import json
import math
import textwrap
from collections.abc import Callable, Iterator

import torch

from lit_small_lm.backbone import BackboneSpec, size_of
from lit_small_lm.plugin import (
    Batch,
    Dims,
    Init,
    Noise,
    Norm,
    Objective,
    Optim,
    Router,
    Sampler,
    Shape,
    Site,
    Source,
    Spec,
    Tokenizer,
    find,
)
from lit_small_lm.spec import check_settings
from lit_small_lm.testing_network import (
    NETWORK,
    SURROUNDINGS,
    TIME,
    TINY,
    VOCAB,
    context,
    network_for,
    require,
    tokens_for,
)
from lit_small_lm.testing_samplers import SAMPLER, SPECIALS

TEXTS = ("def f(x):\n    return x\n", "naïve café — 日本語 🙂", "<|end|> is plain text here", "\t a  b\r\n", "x")
ROLES = (
    "embedding",
    "positions",
    "qkv",
    "out",
    "gate_up",
    "up",
    "down",
    "router",
    "head",
    "norm",
    "convolution",
    "bias",
    "other",
)


def check(spec: Spec, dims: Dims = TINY) -> None:
    """Try every contract of the kind of `spec`.

    Args:
        spec: a part, a whole `BackboneSpec`, an objective, a sampler, an optimizer, a tokenizer or a source.
        dims: the shape of the network it is tried in, for parts that ask for a special one.

    Raises:
        AssertionError: names the class, the contract it breaks and how.
    """
    kinds = type(spec).__mro__
    with torch.random.fork_rng(devices=[]):
        for contract in GENERIC:
            _hold(spec, contract, spec)
        for contract in (contract for kind in kinds for contract in BY_KIND.get(kind, ())):
            _hold(spec, contract, spec, dims)
        for surround in (SURROUNDINGS[kind] for kind in kinds if kind in SURROUNDINGS):
            backbone = surround(spec)
            deep = dataclasses.replace(dims, n_layers=max(dims.n_layers, len(backbone.pattern)))
            for contract in NETWORK:
                _hold(spec, contract, backbone, deep)


def _hold(spec: Spec, contract: Callable, *args) -> None:
    torch.manual_seed(0)
    try:
        contract(*args)
    except Exception as error:
        name, why = contract.__name__.replace("_", " "), str(error) or type(error).__name__
        raise AssertionError(f"{type(spec).__name__}: {name}: {why} (in {spec!r:.200})") from error


# ----------------------------------------------------------------------------------------------------------- any Spec
def is_a_frozen_dataclass(spec: Spec) -> None:
    """A Spec is a frozen, keyword-only dataclass."""
    require("__dataclass_params__" in vars(type(spec)), "@dataclass(frozen=True, kw_only=True) is missing")
    loose = [field.name for field in dataclasses.fields(spec) if not field.kw_only]
    require(not loose, f"fields are not keyword-only: {', '.join(loose)}")


def survives_a_round_trip(spec: Spec) -> None:
    """`from_dict(to_dict())`, by way of JSON, gives an equal Spec."""
    record = json.loads(json.dumps(spec.to_dict()))
    again = type(spec).from_dict(record)
    require(again == spec, f"from_dict(to_dict()) is {again!r}")
    require(again.to_dict() == record, "a second to_dict() differs from the first")


def settings_are_in_range(spec: Spec) -> None:
    """Every field is of its type and within the range `setting` declares."""
    problems = list(check_settings(spec))
    require(not problems, "; ".join(problems))


def is_known_by_short_name(spec: Spec) -> None:
    """The registry finds the class, and no other, under its name."""
    kind = type(spec).__mro__[type(spec).__mro__.index(Spec) - 1]
    require(find(kind, type(spec).__name__) is type(spec), "another class answers to its name")


def is_documented(spec: Spec) -> None:
    """The class has a docstring, and every field a string literal after it."""
    text = type(spec).__doc__ or ""  # a dataclass without a docstring gets its signature as one
    require(text and not text.startswith(f"{type(spec).__name__}("), "the class has no docstring")
    names = {field.name for field in dataclasses.fields(spec)}
    missing = [
        name for cls in type(spec).__mro__ if issubclass(cls, Spec) for name in _undocumented(cls) if name in names
    ]
    require(not missing, f"no string literal after: {', '.join(missing)}")


def _undocumented(cls: type) -> Iterator[str]:
    try:
        body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0].body
    except (OSError, TypeError):  # typed into a prompt: nothing to read
        return
    for statement, after in zip(body, [*body[1:], None], strict=True):
        literal = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        if isinstance(statement, ast.AnnAssign) and not literal:
            yield statement.target.id


# ---------------------------------------------------------------------------------------- small parts, by their values
def keeps_the_shape_of_its_input(spec: Norm, dims: Dims) -> None:
    """A norm returns what it was given, normalised."""
    h = torch.randn(2, 3, dims.dim)
    out = spec.build(dims.dim)(h)
    require(out.shape == h.shape, f"{tuple(h.shape)} becomes {tuple(out.shape)}")


def resolves_to_widths_that_go_together(spec: Shape, dims: Dims) -> None:
    """A shape resolves to positive widths, always the same."""
    sizing = functools.partial(size_of, BackboneSpec(), vocab_size=VOCAB)
    found = spec.resolve(sizing)
    require(found == spec.resolve(sizing), "two calls differ")
    require(
        all(isinstance(v, int) and v > 0 for v in dataclasses.astuple(found)), f"{found}: widths must be positive ints"
    )
    require(found.n_heads % found.n_kv_heads == 0, f"{found.n_heads} heads over {found.n_kv_heads} key/value heads")


def has_a_rule_for_every_role(spec: Init, dims: Dims) -> None:
    """An init knows a deviation, a decay and a learning-rate factor for every role."""
    for role in ROLES:
        std, scale = spec.std(role, dims), spec.lr_scale(role, dims)
        require(math.isfinite(std) and std >= 0, f"the deviation of role {role} is {std}")
        require(math.isfinite(scale) and scale >= 0, f"the learning-rate factor of role {role} is {scale}")
        small = spec.eps_scale(role, dims)
        require(math.isfinite(small) and small > 0, f"the factor on eps of role {role} is {small}")
        decay = spec.decays(role, dims)
        require(math.isfinite(decay) and decay >= 0, f"the weight-decay factor of role {role} is {decay}")


def chooses_distinct_experts(spec: Router, dims: Dims) -> None:
    """A router gives every position `top_k` different experts, and each a finite weight."""
    count, h = 2 * spec.top_k, torch.randn(2 * TIME, dims.dim)
    experts, weights = spec.build(Site(dims, 0, "ffn"), count)(h, context(torch.zeros(2, TIME)))
    wanted = (len(h), spec.top_k)
    require(experts.shape == wanted, f"experts have shape {tuple(experts.shape)}, not {wanted}")
    require(weights.shape == wanted, f"weights have shape {tuple(weights.shape)}, not {wanted}")
    require(bool(((experts >= 0) & (experts < count)).all()), f"an expert is not one of the {count}")
    require(bool((experts.sort(1).values.diff(dim=1) > 0).all()), "a position goes through an expert twice")
    require(bool(torch.isfinite(weights).all()), "weights must be finite")


def masks_more_as_time_goes_on(spec: Noise, dims: Dims) -> None:
    """A noise schedule's alpha falls within [0, 1]; its weights are finite."""
    t = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    alpha, weight = spec.alpha(t), spec.weight(t)
    require(bool(((alpha >= 0) & (alpha <= 1)).all() and (alpha.diff() <= 0).all()), "alpha must fall within [0, 1]")
    require(bool((torch.isfinite(weight) & (weight >= 0)).all()), "weights must be finite and not negative")


# --------------------------------------------------------------------------------------------------------- objectives
def asks_a_well_formed_question(spec: Objective, dims: Dims) -> None:
    """A query's tensors go together, and depend on batch and key only."""
    batch = _batch()
    query, again = spec.query(batch, (0, 3)), spec.query(batch, (0, 3))
    kinds = {spec.kind, *spec.decoding().kinds}
    require(query.visibility.kind in kinds, f"the query is {query.visibility.kind}, the objective {spec.kind}")
    require(query.visibility.positions.shape == query.tokens.shape, "tokens and visibility differ in shape")
    count = query.tokens.shape if query.scored is None else query.scored.shape
    require(query.targets.shape == count, f"targets have shape {tuple(query.targets.shape)}, not {tuple(count)}")
    require(torch.equal(query.tokens, again.tokens), "two queries of one batch and key differ in tokens")
    require(torch.equal(query.targets, again.targets), "two queries of one batch and key differ in targets")
    if query.weights is not None:
        require(query.weights.shape == query.targets.shape, "weights and targets differ in shape")
        require(
            bool((torch.isfinite(query.weights) & (query.weights >= 0)).all()), "weights must be finite, not negative"
        )
        require(torch.equal(query.weights, again.weights), "two queries of one batch and key differ in weights")


def gives_a_row_the_same_noise_in_any_batch(spec: Objective, dims: Dims) -> None:
    """Noise depends on key and slot, not on the other rows."""
    batch = _batch()
    fields = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    half = Batch(**{name: value if name == "specials" else value[2:] for name, value in fields.items()})
    whole, part = spec.query(batch, (0, 3)), spec.query(half, (0, 3))
    require(torch.equal(whole.tokens[-len(part.tokens) :], part.tokens), "tokens depend on the other rows of the batch")


def can_be_trained_on(spec: Objective, dims: Dims) -> None:
    """A query's loss on a random network is finite, positive, and has gradients."""
    net, query = network_for(BackboneSpec(), dims), spec.query(_batch(), (0, 3))
    nll = net(query.tokens, query.context(), query.targets, query.scored)
    loss = (nll if query.weights is None else nll * query.weights).mean()
    loss.backward()
    require(bool(torch.isfinite(loss)) and loss.item() > 0, f"the loss of a random network is {loss.item()}")
    require(spec.bound in ("exact", "upper"), f"bound is {spec.bound!r}")
    require(isinstance(spec.sampler(), Sampler), "sampler() is not a Sampler")


def _batch() -> Batch:
    tokens = torch.randint(3, VOCAB, (4, TIME + 1))
    docs = (torch.arange(TIME + 1) * 2 // TIME).expand(tokens.shape)
    return Batch(tokens, docs, torch.rand(4, TIME) < 0.7, torch.arange(4), torch.arange(4), SPECIALS)


# ------------------------------------------------------------------------------------------- optimizers, text to tokens
def steps_every_parameter_once(spec: Optim, dims: Dims) -> None:
    """An optimizer holds every parameter once, and one step moves them all."""
    net, tokens = network_for(BackboneSpec(), dims), tokens_for(BackboneSpec())
    parameters = list(net.named_roles())
    optimizer = spec.build(parameters, False)
    held = [id(tensor) for group in optimizer.param_groups for tensor in group["params"]]
    require(
        sorted(held) == sorted(id(p.tensor) for p in parameters), "parameters are missing from groups, or held twice"
    )
    require(all("lr_scale" in group for group in optimizer.param_groups), "a group carries no lr_scale")
    before = [p.tensor.detach().clone() for p in parameters]
    net(tokens, context(tokens), tokens).mean().backward()
    optimizer.step()
    for old, parameter in zip(before, parameters, strict=True):
        require(bool(torch.isfinite(parameter.tensor).all()), f"{parameter.name} is not finite after a step")
        require(not torch.equal(old, parameter.tensor), f"{parameter.name} has not moved")


def turns_text_to_ids_and_back(spec: Tokenizer, dims: Dims) -> None:
    """Every text comes back, also from a restored encoder; lengths in bytes add up."""
    encoder = spec.learn(iter(TEXTS))
    specials, lengths = encoder.specials.ids(), encoder.byte_lengths()
    require(len(set(specials.values())) == len(specials), f"special ids coincide: {specials}")
    require(
        all(0 <= i < encoder.specials.vocab_size for i in specials.values()),
        f"special ids outside the vocabulary: {specials}",
    )
    require(lengths.shape == (encoder.specials.vocab_size,), f"byte_lengths has shape {tuple(lengths.shape)}")
    again = spec.restore(json.loads(json.dumps(encoder.record())))
    for text, ids in zip(TEXTS, encoder.encode(TEXTS), strict=True):
        require(all(0 <= i < encoder.specials.vocab_size for i in ids), f"{text!r} has ids outside the vocabulary")
        require(not set(ids) & set(specials.values()), f"{text!r} is encoded with special ids")
        require(encoder.decode(ids) == text, f"{text!r} comes back as {encoder.decode(ids)!r}")
        require(int(lengths[ids].sum()) == len(text.encode()), f"byte_lengths of {text!r} do not add up")
        require(again.encode([text]) == [ids], f"a restored encoder gives {text!r} other ids")


def reads_the_same_documents_every_time(spec: Source, dims: Dims) -> None:
    """A source has the same parts, documents and fingerprint whenever it is asked; weights of a mixture sum to 1."""
    first, second = dataclasses.replace(spec), dataclasses.replace(spec)
    parts = list(first.parts())
    require(parts, "it has no parts")
    require(parts == list(second.parts()), "two lists of its parts differ")
    require(first.fingerprint() == second.fingerprint(), "two fingerprints of one source differ")
    for number in range(min(len(parts), 3)):
        documents = list(itertools.islice(first.read(number), 100))
        again = list(itertools.islice(second.read(number), 100))
        require(documents == again, f"two readings of part {parts[number].name} differ")
        require(all(isinstance(document.text, str) for document in documents), "a document's text is no text")
        for name, text, given in documents:
            edges = [0, *itertools.chain(*given), len(text)]
            require(edges == sorted(edges), f"what is given of {name}, {given}, does not lie in order in its text")
    shares = [component.weight for component in first.components()]
    require(math.isclose(sum(shares), 1) and min(shares) > 0, f"weights {shares} do not sum to 1")


GENERIC = (
    is_a_frozen_dataclass,
    is_known_by_short_name,
    settings_are_in_range,
    survives_a_round_trip,
    is_documented,
)
BY_KIND: dict[type[Spec], tuple[Callable, ...]] = {
    Norm: (keeps_the_shape_of_its_input,),
    Shape: (resolves_to_widths_that_go_together,),
    Init: (has_a_rule_for_every_role,),
    Noise: (masks_more_as_time_goes_on,),
    Router: (chooses_distinct_experts,),
    Objective: (asks_a_well_formed_question, gives_a_row_the_same_noise_in_any_batch, can_be_trained_on),
    Sampler: SAMPLER,
    Optim: (steps_every_parameter_once,),
    Tokenizer: (turns_text_to_ids_and_back,),
    Source: (reads_the_same_documents_every_time,),
}
