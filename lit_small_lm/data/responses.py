"""Prompts and responses, for fine-tuning: the prompt is given, and only the response is learned.

Two layouts of rows are read, from every kind of file that `tables` reads: columns of text, which templates make into a
prompt and a response (Alpaca's instruction, input and output as well as a plain pair), and conversations, lists of
messages with roles (as TRL and others have them, or ShareGPT's "from" and "value"). Prompt and response become tokens
each by itself, as they do while text is drawn behind a prompt.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from string import Formatter
from typing import Any, NamedTuple

from lit_small_lm.data.rows import Column, Row, described, text_of
from lit_small_lm.data.splits import is_empty
from lit_small_lm.data.tables import Tables
from lit_small_lm.errors import RequestError, RunError, shown
from lit_small_lm.plugin import Document

ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
"""The roles that messages may have, and which template writes them."""
KEYS = (("role", "content"), ("from", "value"))
"""Under which names a message has its role and its text."""


@dataclass(frozen=True, kw_only=True)
class Responses(Tables):
    """Rows of a prompt and a response; only the response is learned, masked and scored.

    Raises:
        RequestError: a template that names no column.
    """

    prompt: str = "{prompt}"
    """The prompt, with {column} where a column's text goes, such as "Q: {question}\\nA:"; {{ and }} are braces."""
    response: str = "{response}"
    """The response, in the same way; behind it stands the end of the document."""

    def columns(self) -> Sequence[Column]:
        found: dict[str, Column] = {}
        for field in ("prompt", "response"):
            where = f"data.source.{field}"
            for _, name in _parsed(getattr(self, field), where):
                if name is not None:
                    found.setdefault(name, Column(name, where))
        return list(found.values())

    def decides(self) -> Sequence[str]:
        return ["pair", self.prompt, self.response]

    def document(self, name: str, row: Row) -> Document:
        names = [column.name for column in self.columns()]
        values = {key: _value(row, key, value) for key, value in zip(names, row.values, strict=True)}
        prompt, response = _filled(self.prompt, values), _filled(self.response, values)
        if is_empty(response):
            raise RunError(f"row {row.number}: the response is empty; allowed: text")
        return Document(name, prompt + response, ((0, len(prompt)),) if prompt else ())


def _parsed(template: str, where: str = "") -> list[tuple[str, str | None]]:
    """Text and the column behind it, again and again. Raises RequestError, which begins with `where`."""
    problem = ""
    try:
        parts = [(text, name, extra or how) for text, name, extra, how in Formatter().parse(template)]
    except ValueError as error:
        parts, problem = [], f"{error}; a brace is written {{{{ or }}}}"
    if any(name is not None and (not name or extra) for _, name, extra in parts):
        problem = "a pair of braces holds the name of a column, and nothing else"
    if not problem and not any(name for _, name, _ in parts):
        problem = f"it names no column; allowed: {{column}}, such as {{{template.strip() or 'text'}}}"
    if problem:
        raise RequestError(f"{where}: {shown(template)!r}: {problem}")
    return [(text, name) for text, name, _ in parts]


def _filled(template: str, values: Mapping[str, str]) -> str:
    return "".join(text + (values[name] if name else "") for text, name in _parsed(template))


def _value(row: Row, column: str, value: object) -> str:
    return text_of(f"row {row.number}: {shown(column)}", value)


class Message(NamedTuple):
    """A turn of a conversation."""

    role: str
    """One of those that have a template."""
    text: str


@dataclass(frozen=True, kw_only=True)
class Conversations(Tables):
    """Rows of messages with roles; what the assistant says is learned, masked and scored, and nothing else.

    A message is {"role": ..., "content": ...}, or {"from": ..., "value": ...}; "human" is the user, "gpt" the
    assistant. In each template {} is the text of the message; what stands before the assistant's text is given, what
    stands behind it is learned with it.

    Raises:
        RequestError: a template without {}, or with several.
    """

    messages_column: str = "messages"
    """The column that holds the lists of messages."""
    system: str = "System:\n{}\n"
    """How a system message is written down."""
    user: str = "User:\n{}\n"
    """How a message of the user is written down."""
    assistant: str = "Assistant:\n{}\n"
    """How a response is written down."""

    def columns(self) -> Sequence[Column]:
        for role in dict.fromkeys(ROLES.values()):
            template = getattr(self, role)
            if template.count("{}") != 1:
                raise RequestError(f"data.source.{role}: {shown(template)!r}; allowed: text with {{}} in it, once")
        return [Column(self.messages_column, "data.source.messages_column", "list")]

    def decides(self) -> Sequence[str]:
        return ["conversation", self.messages_column, self.system, self.user, self.assistant]

    def document(self, name: str, row: Row) -> Document:
        text, given = "", []
        messages = list(_messages(f"row {row.number}", row.values[0]))
        if not any(message.role == "assistant" for message in messages):
            raise RunError(f"row {row.number}: no message of the assistant; a response is what is learned")
        for role, content in messages:
            before, behind = getattr(self, role).split("{}")
            prompt, response = (before, content + behind) if role == "assistant" else (before + content + behind, "")
            if given and given[-1][1] == len(text):  # one prompt, as it is while text is drawn behind it
                given[-1] = (given[-1][0], len(text + prompt))
            else:
                given.append((len(text), len(text + prompt)))
            text += prompt + response
        return Document(name, text, tuple(given))


def _messages(where: str, found: Any) -> Iterator[Message]:
    """The messages of a row. Raises RunError, which begins with `where` and says which message is wrong."""
    if not isinstance(found, list):
        raise RunError(f"{where}: {described(found)}; allowed: a list of messages")
    for number, message in enumerate(found, 1):
        yield _message(f"{where}: message {number}", message)


def _message(where: str, found: Any) -> Message:
    names = found if isinstance(found, dict) else {}
    keys = next((keys for keys in KEYS if set(keys) <= names.keys()), None)
    if keys is None:
        allowed = " or ".join(f"{{{', '.join(keys)}}}" for keys in KEYS)
        raise RunError(f"{where}: {shown(found)}; allowed: {allowed}")
    role, text = (text_of(f"{where}: {key}", found[key]) for key in keys)
    if role not in ROLES:
        raise RunError(f"{where}: role {shown(role)!r}; allowed: {', '.join(ROLES)}")
    if ROLES[role] == "assistant" and is_empty(text):
        raise RunError(f"{where}: the response is empty; allowed: text")
    return Message(ROLES[role], text)
