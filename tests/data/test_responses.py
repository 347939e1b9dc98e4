"""Prompts and responses: what is read, and that nothing but the response is ever masked, scored or counted."""

import dataclasses
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given as drawn
from hypothesis import strategies as st
from lightning.pytorch import Trainer

from lit_small_lm.__main__ import main
from lit_small_lm.backbone import Backbone, BackboneSpec
from lit_small_lm.context import Context, Visibility
from lit_small_lm.data import encoding
from lit_small_lm.data.datamodule import TokenData
from lit_small_lm.data.given import flags, stretches
from lit_small_lm.data.mixture import Mixture, Weighted
from lit_small_lm.data.packing import left_out
from lit_small_lm.data.plan import Warmup
from lit_small_lm.data.responses import Conversations, Responses
from lit_small_lm.data.sources import TextFiles
from lit_small_lm.data.splits import Splits, digest_of, split_of
from lit_small_lm.data.tokenizer import BPE, Bytes
from lit_small_lm.errors import RequestError, RunError
from lit_small_lm.objectives.block_diffusion import BlockDiffusion
from lit_small_lm.objectives.joint import JointDiffusion
from lit_small_lm.objectives.masked_diffusion import MaskedDiffusion
from lit_small_lm.objectives.masking import Texts, lay_out
from lit_small_lm.objectives.next_token import NextToken
from lit_small_lm.plugin import Dims, Document
from lit_small_lm.testing import check

PAIRS = [(f"ASK {n} " + "X" * (n % 5), f"say {n % 7} " + "y" * (n % 11)) for n in range(120)]
"""Prompts in capitals, responses in small letters."""
OBJECTIVES = {
    "next token": NextToken(),
    "masked": MaskedDiffusion(),
    "blocks": BlockDiffusion(block_size=4),
    "blocks, before": BlockDiffusion(block_size=4, logits_at="before"),
    "joint": JointDiffusion(block_size=4),
}
ESTIMATORS = ("stratified", "independent", "count", "complementary")
TINY = Dims(dim=8, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=4, hidden=12)


def write(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


@pytest.fixture
def pairs(tmp_path):
    return write(tmp_path / "pairs.jsonl", [{"prompt": a, "response": b} for a, b in PAIRS])


def documents(source):
    return [document for part in range(len(source.parts())) for document in source.read(part)]


def learned(document):
    """What of a document is not given."""
    return [document.text[a:b] for a, b, is_given in stretches(len(document.text), document.given) if not is_given]


def opened(source, tmp_path, tokenizer=Bytes(), **options):
    data = TokenData(
        source, tokenizer, cache_dir=str(tmp_path / "cache"), **{"seq_len": 48, "batch_size": 2, **options}
    )
    data.trainer = Trainer(max_steps=12, accelerator="cpu", logger=False, enable_checkpointing=False)
    data.prepare_data()
    data.setup("fit")
    return data


# ------------------------------------------------------------------------------------------------------------ reading
def test_a_pair_is_one_document_of_which_the_prompt_is_given(pairs):
    found = documents(Responses(path=pairs))
    assert [document.text for document in found] == [a + b for a, b in PAIRS]
    assert [learned(document) for document in found] == [[b] for _, b in PAIRS]
    check(Responses(path=pairs))


@pytest.mark.parametrize("form", ["parquet", "csv", "json"])
def test_every_format_gives_the_same_pairs(form, pairs, tmp_path):
    file, columns = tmp_path / f"pairs.{form}", {"prompt": [a for a, _ in PAIRS], "response": [b for _, b in PAIRS]}
    if form == "parquet":
        pq.write_table(pa.table({"other": list(range(len(PAIRS))), **columns}), file, row_group_size=50)
    elif form == "csv":
        file.write_text("response,prompt\n" + "".join(f"{b},{a}\n" for a, b in PAIRS))
    else:
        file.write_text(json.dumps([{"response": b, "prompt": a} for a, b in PAIRS]))
    texts = [(document.text, document.given) for document in documents(Responses(path=str(file)))]
    assert texts == [(document.text, document.given) for document in documents(Responses(path=pairs))]


def test_templates_name_columns(tmp_path):
    rows = [
        {"instruction": "add", "the input": "1, 2", "output": "{3}"},
        {"instruction": "go", "the input": "", "output": "ok"},
    ]
    source = Responses(
        path=write(tmp_path / "a.jsonl", rows),
        prompt="### {instruction}: {{{the input}}}\n", response="{output}!",
    )  # fmt: skip
    assert [document.text for document in documents(source)] == ["### add: {1, 2}\n{3}!", "### go: {}\nok!"]
    assert [learned(document) for document in documents(source)] == [["{3}!"], ["ok!"]]


TALK = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "hello"},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "see you"},
]
WRITTEN = "System:\nBe kind.\nUser:\nHi\nAssistant:\nhello\nUser:\nBye\nAssistant:\nsee you\n"


@pytest.mark.parametrize("form", ["jsonl", "parquet", "ShareGPT"])
def test_of_a_conversation_only_what_the_assistant_says_is_learned(form, tmp_path):
    file, column = tmp_path / "talk.jsonl", "messages"
    if form == "parquet":
        file = tmp_path / "talk.parquet"
        pq.write_table(pa.table({"messages": [TALK]}), file)
    elif form == "ShareGPT":
        names, column = {"user": "human", "assistant": "gpt"}, "conversations"
        talk = [{"from": names.get(m["role"], m["role"]), "value": m["content"]} for m in TALK]
        write(file, [{"conversations": talk}])
    else:
        write(file, [{"messages": TALK}])
    source = Conversations(path=str(file), messages_column=column)
    (document,) = documents(source)
    assert document.text == WRITTEN
    assert learned(document) == ["hello\n", "see you\n"]
    assert len(document.given) == 2, "what is given in a row is one run, as it is one prompt while text is drawn"
    check(source)


def test_the_fingerprint_follows_templates(tmp_path):
    file = write(tmp_path / "a.jsonl", [{"prompt": "a", "response": "b", "messages": TALK}])
    sources = [
        Responses(path=file), Responses(path=file, prompt="{prompt} "), Responses(path=file, response="{prompt}"),
        Conversations(path=file), Conversations(path=file, user="{}"),
    ]  # fmt: skip
    assert len({source.fingerprint() for source in sources}) == 5


# ---------------------------------------------------------------------------------------------------------- tokenising
@drawn(st.lists(st.integers(0, 30), max_size=12), st.integers(0, 30), st.integers(0, 10))
def test_flags_are_those_of_the_runs(edges, start, length):
    edges = sorted(edges)[: len(edges) // 2 * 2]
    runs = np.array(edges, dtype=np.int64).reshape(-1, 2)
    inside = [any(a <= at < b for a, b in runs) for at in range(start, start + length)]
    assert flags(runs, start, start + length).tolist() == inside


@pytest.mark.parametrize("tokenizer", [Bytes(), BPE(vocab_size=300)], ids=["bytes", "bpe"])
def test_prompt_and_response_are_encoded_each_by_itself(tokenizer, pairs, tmp_path):
    data = opened(Responses(path=pairs), tmp_path, tokenizer)
    encode, wanted = data.encoder.encode, {}
    for a, b in PAIRS:
        wanted.setdefault(split_of(digest_of(a + b)), []).append(encode([a])[0] + encode([b])[0])
    for split, texts in wanted.items():
        (stream,) = data.corpus.streams(split)
        edges = [*stream.starts.tolist(), stream.length - 1]
        assert [stream.read(a + 1, b).tolist() for a, b in zip(edges, edges[1:], strict=False)] == texts


def test_long_texts_are_given_in_every_piece(monkeypatch, pairs, tmp_path):
    monkeypatch.setattr(encoding, "BATCH", 7)
    in_pieces = opened(Responses(path=pairs), tmp_path / "a").corpus.streams("train")[0]
    monkeypatch.undo()
    whole = opened(Responses(path=pairs), tmp_path / "b").corpus.streams("train")[0]
    marks = [flags(s.given, 0, s.length) for s in (in_pieces, whole)]
    assert marks[0].tolist() == marks[1].tolist() and marks[0].any()
    assert in_pieces.read(0, whole.length).tolist() == whole.read(0, whole.length).tolist()


def test_a_store_is_enough(pairs, tmp_path):
    data = opened(Responses(path=pairs), tmp_path)
    (folder,) = (tmp_path / "cache" / "tokens").iterdir()
    alone = opened(Responses(), tmp_path, Bytes(), store=str(folder))
    for split in ("train", "test"):
        assert alone.corpus.streams(split)[0].given.tolist() == data.corpus.streams(split)[0].given.tolist() != []


# -------------------------------------------------------------------------------------- what is asked, and what counts
def batches(data):
    """Every batch of all splits."""
    for split in ("train", "validation", "test"):
        yield from data._evaluated(split)


def is_response(tokens):
    """Not the capitals, which stand in prompts alone."""
    return ~((tokens >= ord("A") + 3) & (tokens <= ord("Z") + 3))


@pytest.mark.parametrize("packing", ["concatenate", "best_fit"])
def test_rows_hold_whole_documents_and_count_responses(packing, pairs, tmp_path):
    data = opened(Responses(path=pairs), tmp_path, packing=packing)
    texts, several = [], False
    for batch in batches(data):
        for tokens, docs, mask in zip(batch.tokens, batch.doc_ids, batch.loss_mask, strict=True):
            here = [i for i in docs.unique().tolist() if i >= 0]
            several |= len(here) > 1
            for document in here:
                at = (docs == document).nonzero().flatten()
                read, counted = tokens[at].tolist(), tokens[1:][at][mask[at]].tolist()
                assert read[0] == 0 and counted[-1] == 0, "the end of a response is learned"
                texts.append((data.encoder.decode(read), data.encoder.decode(counted)))
    assert several
    assert sorted(texts) == sorted((a + b, b) for a, b in PAIRS)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_no_token_of_a_prompt_is_scored_or_masked(name, estimator, pairs, tmp_path):
    objective = OBJECTIVES[name]
    if name != "next token":
        objective = dataclasses.replace(objective, estimator=estimator)
    data, masked = opened(Responses(path=pairs), tmp_path), 0
    for batch in batches(data):
        texts, wanted = lay_out(batch), batch.loss_mask.sum().item()
        for step in range(3):
            query = objective.query(batch, (0, step))
            counts = query.weights.bool() if query.scored is None else torch.ones_like(query.targets, dtype=torch.bool)
            assert is_response(query.targets[counts]).all()
            assert query.count.sum() == wanted * (len(query.count) // len(batch.tokens))
            if name != "next token":
                width = texts.tokens.shape[1]
                hidden = query.tokens[:, :width] == data.encoder.specials.mask
                clean = texts.tokens.repeat_interleave(len(hidden) // len(texts.tokens), 0)
                assert is_response(clean[hidden]).all()
                masked += hidden.sum().item()
    assert masked > 100 or name == "next token"


@pytest.mark.parametrize("name", OBJECTIVES)
def test_no_document_sees_another(name, pairs, tmp_path):
    data = opened(Responses(path=pairs), tmp_path)
    for batch in batches(data):
        seen = OBJECTIVES[name].query(batch, (0, 0)).visibility
        pair = seen.doc_ids.unsqueeze(2) == seen.doc_ids.unsqueeze(1)
        assert not (seen.dense()[:, 0] & ~pair).any()


def network(vocab):
    torch.manual_seed(0)
    net = Backbone(BackboneSpec(canon_at="AC"), TINY, vocab).double().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return net


def nats_of_documents(net, query, batch, texts):
    """{document: nats, weighted} of a batch."""
    with torch.no_grad():
        nll = net(query.tokens, query.context(), query.targets, query.scored)
    if query.scored is None:
        docs, nll = batch.doc_ids[:, :-1].flatten(), (nll * query.weights).flatten()
    else:
        width, views = query.tokens.shape[1], len(query.tokens) // len(texts.tokens)
        at = query.scored % width % texts.tokens.shape[1]
        docs, nll = texts.visibility.doc_ids[query.scored // width // views, at], nll * query.weights / views
    return {i: nll[docs == i].sum().item() for i in docs.unique().tolist() if i >= 0}


@pytest.mark.parametrize("name", ["next token", "masked", "blocks"])
def test_a_packed_pair_costs_what_it_costs_alone(name, pairs, tmp_path):
    """The rows of a split, and each of its documents by itself: the same losses where the same tokens are masked."""
    data = opened(Responses(path=pairs), tmp_path)
    net, found = network(data.encoder.specials.vocab_size), {}
    for batch in data._evaluated("validation"):
        texts, objective = lay_out(batch), OBJECTIVES[name]
        query = objective.query(batch, (0, 1))
        found |= nats_of_documents(net, query, batch, texts)
        for row, docs in enumerate(texts.visibility.doc_ids):
            for document in [i for i in docs.unique().tolist() if i >= 0]:
                at = docs == document
                views = [] if name == "next token" else [query.tokens[row, : len(docs)][at]]
                assert alone(net, objective, texts.tokens[row][at], texts.open[row][at], views, query, row, at) == (
                    pytest.approx(found[document], rel=1e-9)
                )
    assert len(found) > 1


def alone(net, objective, tokens, open_, views, query, row, at):
    """Nats of one document that has a row to itself, weighted as in `query`."""
    clean = tokens.unsqueeze(0)
    if not views:
        with torch.no_grad():
            nll = net(clean[:, :-1], Context(Visibility.rows(clean[:, :-1])), clean[:, 1:])
        return nll[0][open_[1:]].sum().item()
    mask, width = query.impossible[0], query.tokens.shape[1]
    noisy = views[0].unsqueeze(0)
    columns = query.scored[query.scored // width == row] % width
    weights = torch.zeros(width, dtype=torch.float64)
    weights[columns] = query.weights[query.scored // width == row]
    both, seen = objective.seen(lay_out_alone(clean), noisy)
    places = (noisy[0] == mask).nonzero().flatten()
    with torch.no_grad():
        nll = net(both, Context(seen, impossible=(mask,)), clean[0][places], places)
    return (nll * weights[: len(at)][at][places]).sum().item()


def lay_out_alone(clean):
    seen = Visibility.rows(clean, torch.zeros_like(clean), "bidirectional")
    return Texts(clean, seen, torch.ones_like(clean, dtype=torch.bool), torch.zeros(1, dtype=torch.long))


@pytest.mark.parametrize(
    "model",
    [["AutoregressiveLM"], ["DiffusionLM"], ["DiffusionLM", "--model.objective.filled_to", "16"]],
    ids=["autoregressive", "diffusion", "filled up"],
)
def test_held_out_figures_are_of_responses_alone(model, pairs, tmp_path):
    argv = [
        "fit", "--model", *model,
        "--model.shape.dim", "16", "--model.shape.n_layers", "1", "--model.shape.n_heads", "2",
        "--data.source", "Responses", "--data.source.path", pairs, "--data.tokenizer", "Bytes", "--data.seq_len", "48",
        "--data.batch_size", "2", "--trainer.max_steps", "2", "--trainer.val_check_interval", "2",
        "--trainer.accelerator", "cpu", "--trainer.precision", "32-true", "--run_dir", str(tmp_path / "run"),
    ]  # fmt: skip
    assert main(argv) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    figures = next(line for line in lines if "val/tokens" in line)
    held = [b for a, b in PAIRS if split_of(digest_of(a + b)) == "validation"]
    assert figures["val/documents"] == len(held) > 1
    assert figures["val/bytes"] == sum(map(len, held))
    assert figures["val/tokens"] == sum(len(b) + 1 for b in held)


# ------------------------------------------------------------------------------------------- documents that do not fit
def test_documents_longer_than_a_row_are_left_out_and_counted(tmp_path):
    rows = [{"prompt": f"A{n}", "response": "b" * (40 if n % 10 else 48)} for n in range(100)]
    data = opened(Responses(path=write(tmp_path / "a.jsonl", rows)), tmp_path)
    notes, long = data.notes(), {}
    for n, row in enumerate(rows):
        split = split_of(digest_of(row["prompt"] + row["response"]))
        long[split] = long.get(split, 0) + (n % 10 == 0)
    for split, count in long.items():
        line = f"data: {split}: {count} of {len(data.corpus.streams(split)[0].starts)} documents need more than"
        assert any(note.startswith(line) for note in notes) == (count > 0)
    assert sum(int((batch.doc_ids[:, 0] >= 0).sum()) for batch in batches(data)) == 90, "a row each, none cut"


def test_a_row_may_be_filled_to_its_end(tmp_path):
    rows = [{"prompt": f"{n:03d}", "response": "b" * (44 + n % 2)} for n in range(200)]  # 48 and 49
    data = opened(Responses(path=write(tmp_path / "a.jsonl", rows)), tmp_path)
    assert sum(left_out(data.corpus.streams(split)[0], 48) for split in ("train", "validation", "test")) == 100
    for batch in batches(data):
        assert (batch.loss_mask[batch.doc_ids[:, 0] >= 0].sum(1) == 45).all(), "44 letters and the end"


def test_where_nothing_fits_it_is_said(tmp_path):
    rows = [{"prompt": f"{n:03d}", "response": "b" * 60} for n in range(60)]
    with pytest.raises(RequestError, match="data.seq_len: 48; no train document fits .* the shortest needs 64"):
        opened(Responses(path=write(tmp_path / "a.jsonl", rows)), tmp_path)


def test_shorter_rows_at_the_beginning_are_refused(pairs, tmp_path):
    with pytest.raises(RequestError, match="data.warmup.seq_len: 4; .* cut prompts"):
        opened(Responses(path=pairs), tmp_path, warmup=Warmup(seq_len=4))


def test_prompts_are_not_streamed(pairs, tmp_path):
    with pytest.raises(RequestError, match="data.reading: streamed; .* allowed: prepared"):
        opened(Responses(path=pairs), tmp_path, reading="streamed")


# -------------------------------------------------------------------------------------------------------------- splits
def test_a_handful_of_pairs_is_held_out_by_whole_pairs(tmp_path):
    rows = [{"prompt": f"A{n}", "response": "b"} for n in (1, 2, 3, 4, 5, 1)]
    source = Responses(path=write(tmp_path / "a.jsonl", rows))
    splits = Splits.of(source)
    found = {document.text: splits.pieces(document) for document in documents(source)}
    assert all(pieces[0][1] == text and len(pieces) == 1 for text, pieces in found.items())
    assert sorted(pieces[0][0] for pieces in found.values()) == ["test", "train", "train", "train", "validation"]
    assert opened(source, tmp_path, batch_size=1).corpus.components[0].summary["validation"]["documents"] >= 1


def test_two_pairs_are_too_few(tmp_path):
    rows = [{"prompt": f"A{n}", "response": "b"} for n in (1, 2, 1)]
    with pytest.raises(RequestError, match="2 different documents, which cannot be cut; needed: 3"):
        Splits.of(Responses(path=write(tmp_path / "a.jsonl", rows)))


def test_text_and_pairs_are_mixed(pairs, tiny_text, tmp_path):
    members = {"text": TextFiles(path=str(tiny_text)), "pairs": Responses(path=pairs)}
    data = opened(Mixture(sources={name: Weighted(source=source) for name, source in members.items()}), tmp_path)
    numbers, counted = data.documents("train"), {"text": 0, "pairs": 0}
    for batch in data._evaluated("train"):
        for name, documents_ in numbers.items():
            of_it = (batch.doc_ids[:, :-1] >= documents_.start) & (batch.doc_ids[:, :-1] < documents_.stop)
            counted[name] += int((of_it & batch.loss_mask).sum())
            if name == "text":
                assert batch.loss_mask[of_it].all()
    train = [b for a, b in PAIRS if split_of(digest_of(a + b)) == "train"]
    assert counted["pairs"] == sum(len(b) + 1 for b in train)
    assert counted["text"] > 1000


# --------------------------------------------------------------------------------------------------------- wrong input
GOOD = '{"prompt": "a", "response": "b", "messages": [{"role": "assistant", "content": "y"}]}'
WRONG_ROWS = {
    '{"prompt": "a"}': "row 2: response: nothing is there; allowed: text",
    '{"prompt": 5, "response": "b"}': "row 2: prompt: 5 is a whole number; allowed: text",
    '{"prompt": "a", "response": " \\n"}': "row 2: the response is empty; allowed: text",
    '{"prompt": "a", "response": "\\ud800"}': "row 2: response: character 0 is half of a pair",
    '{"prompt": "a", ': "row 2: no JSON",
    "[1]": "row 2: .* is no JSON object",
    f'{{"prompt": {"9" * 5000}, "response": "b"}}': "row 2: a whole number of more digits than can be read",
}
WRONG_TALKS = {
    "{}": "row 2: nothing is there; allowed: a list of messages",
    '{"messages": "hi"}': "row 2: hi is text; allowed: a list of messages",
    '{"messages": []}': "row 2: no message of the assistant",
    '{"messages": [{"role": "user", "content": "x"}]}': "row 2: no message of the assistant",
    '{"messages": ["hi"]}': "row 2: message 1: hi; allowed: {role, content} or {from, value}",
    '{"messages": [{"role": "tool", "content": "x"}]}': "row 2: message 1: role 'tool'; allowed: system, user",
    '{"messages": [{"role": "user", "content": null}]}': "row 2: message 1: content: nothing is there; allowed: text",
    '{"messages": [{"role": "assistant", "content": ""}]}': "row 2: message 1: the response is empty",
}


@pytest.mark.parametrize("line", [*WRONG_ROWS, *WRONG_TALKS])
def test_a_wrong_row_is_named(line, tmp_path):
    file = tmp_path / "wrong.jsonl"
    file.write_text(f"{GOOD}\n{line}\n")
    source = (Responses if line in WRONG_ROWS else Conversations)(path=str(file))
    with pytest.raises(RunError, match=f"wrong.jsonl(:|, ){{0,1}}.*{(WRONG_ROWS | WRONG_TALKS)[line]}") as caught:
        documents(source)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        (
            Responses(prompt="{question}"),
            "data.source.prompt: 'question' is no column of .*; columns: prompt, response",
        ),
        (Responses(response="{respons}"), "data.source.response: .* did you mean response"),
        (Responses(prompt="prompt"), "data.source.prompt: 'prompt': it names no column; allowed: .*such as {prompt}"),
        (Responses(prompt="{prompt"), "data.source.prompt: '{prompt': expected '}'"),
        (Responses(response="{}"), "data.source.response: '{}': a pair of braces holds the name of a column"),
        (Responses(response="{response!r}"), "and nothing else"),
        (Conversations(messages_column="talk"), "data.source.messages_column: 'talk' is no column"),
        (Conversations(user="User"), "data.source.user: 'User'; allowed: text with {} in it, once"),
    ],
)
def test_a_wrong_request_is_refused(source, problem, tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text(GOOD + "\n")
    with pytest.raises(RequestError, match=problem):
        dataclasses.replace(source, path=str(file)).parts()


def test_columns_of_another_kind_are_refused(tmp_path):
    pq.write_table(pa.table({"prompt": ["a"], "response": [["b"]], "messages": ["c"]}), tmp_path / "a.parquet")
    with pytest.raises(RequestError, match="data.source.response: 'response' .* is list<.*; allowed: text"):
        Responses(path=str(tmp_path / "a.parquet")).parts()
    with pytest.raises(RequestError, match="data.source.messages_column: 'messages' .* is text; allowed: list"):
        Conversations(path=str(tmp_path / "a.parquet")).parts()


@pytest.mark.parametrize("given", [((3, 2),), ((0, 99),), ((-1, 2),), ((2, 4), (3, 5))])
def test_given_runs_that_do_not_lie_in_the_text_are_named(given):
    with pytest.raises(RunError, match="mine: given .* of 6 characters"):
        Splits("whole").digested(Document("mine", "abcdef", given))


def test_the_command_line_says_it_in_one_line(tmp_path, capsys):
    file = tmp_path / "wrong.jsonl"
    file.write_text(GOOD + "\n" + '{"prompt": "a", "response": ""}\n')
    argv = ["fit", "--model", "AutoregressiveLM", "--data.source", "Responses", "--data.source.path", str(file)]
    assert main([*argv, "--trainer.max_steps", "1", "--run_dir", str(tmp_path / "run")]) == 1
    said = capsys.readouterr().err.strip().splitlines()
    assert said[-1] == f"error: {file}, row 2: the response is empty; allowed: text"
    assert not any("Traceback" in line for line in said)
