"""Content hashes: two texts or records have one key exactly when they say the same.

The origin never counts. Tokens and caches use these keys, so a change of the form below makes
every cache stale.
"""

import hashlib
import json
from typing import Any

from veritune.records.kinds import Message, Record, Rendering, Scored, Text, TokenIds, Unpaired

_KEY_BYTES = 16


def content_key(content: Text | Record) -> bytes:
    """A 16-byte hash of a text, or of a record without its origin.

    Plain text, messages and token ids never share a key, even where they would render alike.
    A record's key covers its kind, prompt, completions in order, label or scores, and rendering.
    """
    if isinstance(content, str | tuple | TokenIds):
        return _digest(_text_form(content))
    return _digest(_record_form(content))


def prompt_key(record: Record) -> bytes:
    """A 16-byte hash of what the policy is given: the prompt with its tools and template settings.

    For "the same prompt text", whatever the tools, use `content_key(record.prompt)`.
    """
    return _digest([_text_form(record.prompt), _rendering_form(record.rendering)])


def _digest(form: Any) -> bytes:
    # ensure_ascii also encodes a lone surrogate, which UTF-8 cannot; repr stands in for values
    # that JSON has no word for (a date in a Parquet struct).
    text = json.dumps(form, sort_keys=True, separators=(",", ":"), ensure_ascii=True, default=repr)
    return hashlib.blake2b(text.encode("ascii"), digest_size=_KEY_BYTES).digest()


def _text_form(text: Text) -> Any:
    if isinstance(text, str):
        return {"text": text}
    if isinstance(text, TokenIds):
        return {"ids": text.ids}
    return {"messages": [_message_form(message) for message in text]}


def _message_form(message: Message) -> Any:
    return [message.role, message.content, dict(message.extra)]


def _rendering_form(rendering: Rendering) -> Any:
    return [[dict(tool) for tool in rendering.tools], dict(rendering.chat_template_kwargs)]


def _record_form(record: Record) -> Any:
    form: dict[str, Any] = {
        "kind": record.kind,
        "prompt": _text_form(record.prompt),
        "completions": [_text_form(completion) for completion in record.completions],
        "rendering": _rendering_form(record.rendering),
    }
    if isinstance(record, Unpaired):
        form["desirable"] = record.desirable
    if isinstance(record, Scored):
        form["scores"] = [float(score) for score in record.scores]
    return form
