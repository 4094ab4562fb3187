"""Messages to text by the model's chat template, cut where turns of the assistant begin and end.

1. `render` gives what the model's own template says, and nothing else.
2. `assistant_spans` finds, in the rendered dialogue, the text that the model is to produce.

The template owns every special token of a dialogue. Nothing is added to its text here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2

from veritune.errors import ModelError, TokenizationError
from veritune.records.kinds import Message, Messages, Origin, Rendering


@dataclass(frozen=True)
class Turn:
    """Text between two cuts of a rendered dialogue."""

    text: str
    is_assistant: bool
    """True from the end of the generation prompt up to where the next turn's text begins."""


def render(
    tokenizer: Any,
    messages: Messages,
    rendering: Rendering,
    *,
    chat_template_kwargs: Mapping[str, Any],
    add_generation_prompt: bool,
    where: Origin | None = None,
) -> str:
    """The dialogue as the template writes it.

    Raises:
        TokenizationError: The tokenizer has no template, or the template refuses the messages.
        ModelError: The template is not valid Jinja.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise TokenizationError(
            "the record holds messages, but the model's tokenizer has no chat template",
            where=where,
            got=[message.role for message in messages],
            why="without a template there is no telling how this model marks turns",
            fix="use a model with a chat template, set tokens.chat_template to a Jinja file, "
            "or give prompt and completion as plain strings",
        )
    arguments = {**chat_template_kwargs, **rendering.chat_template_kwargs}
    try:
        text = tokenizer.apply_chat_template(
            [_as_mapping(message) for message in messages],
            tools=[dict(tool) for tool in rendering.tools] or None,
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
            **arguments,
        )
    except jinja2.TemplateSyntaxError as error:
        raise ModelError(
            f"the chat template is not valid Jinja ({error.message})",
            where=f"chat template, line {error.lineno}",
            fix="mend it, or set tokens.chat_template to the file of another",
        ) from error
    # Templates are programs: jinja2 errors, and whatever the template raises, arrive here.
    except Exception as error:
        raise TokenizationError(
            f"the chat template refuses this dialogue ({error})",
            where=where,
            got=[message.role for message in messages],
            fix="change the roles to those that the template knows, or set data.on_error=skip",
        ) from error
    assert isinstance(text, str), "apply_chat_template(tokenize=False) returns text"
    return text


def rendered_turns(
    tokenizer: Any,
    prompt: Messages,
    completion: Messages,
    rendering: Rendering,
    *,
    chat_template_kwargs: Mapping[str, Any],
    where: Origin | None = None,
) -> tuple[str, list[Turn]]:
    """The text of the prompt, and the completion cut at every turn of the assistant.

    The prompt's text includes the generation prompt (the header after which the model speaks), so
    it is the same text that sampling starts from. Joined together, the pieces are the rendered
    dialogue.

    Raises:
        TokenizationError: The completion does not begin with the assistant, or rendering the first
            turns gives a text that the rendered dialogue does not begin with, so there is no place
            to cut.
    """
    if not completion or completion[0].role != "assistant":
        raise TokenizationError(
            "the completion does not begin with a turn of the assistant",
            where=where,
            got=[message.role for message in completion],
            fix="move the turns before the assistant's answer into the prompt",
        )
    dialogue = (*prompt, *completion)
    whole = render(
        tokenizer,
        dialogue,
        rendering,
        chat_template_kwargs=chat_template_kwargs,
        add_generation_prompt=False,
        where=where,
    )
    cuts: list[int] = []
    is_assistant: list[bool] = []
    for position in range(len(prompt), len(dialogue)):
        if dialogue[position].role != "assistant":
            continue
        for stop, speaks in ((position, True), (position + 1, False)):
            if stop == len(dialogue):
                continue
            head = render(
                tokenizer,
                dialogue[:stop],
                rendering,
                chat_template_kwargs=chat_template_kwargs,
                add_generation_prompt=speaks,
                where=where,
            )
            # Some templates close whatever is no prompt with the end-of-sequence token.
            if not whole.startswith(head) and not speaks:
                head = head.removesuffix(tokenizer.eos_token or "")
            if not whole.startswith(head):
                raise _no_place_to_cut(dialogue, stop, head, whole, where)
            cuts.append(len(head))
            is_assistant.append(speaks)
    ends = [*cuts[1:], len(whole)]
    turns = [
        Turn(whole[start:end], speaks)
        for start, end, speaks in zip(cuts, ends, is_assistant, strict=True)
    ]
    return whole[: cuts[0]], turns


def _no_place_to_cut(
    dialogue: Sequence[Message], stop: int, head: str, whole: str, where: Origin | None
) -> TokenizationError:
    pairs = enumerate(zip(head, whole, strict=False))
    same = next((i for i, (a, b) in pairs if a != b), len(whole))
    view = slice(max(0, same - 20), same + 40)
    return TokenizationError(
        f"the chat template renders the first {stop} of {len(dialogue)} messages differently when "
        "the others follow, so prompt and completion cannot be told apart",
        where=where,
        got=f"{head[view]!r} alone, {whole[view]!r} in full",
        why="the loss would fall on tokens of the prompt",
        fix="set tokens.chat_template to a template that only appends, or tokens."
        "chat_template_kwargs (for example {enable_thinking: false})",
    )


def _as_mapping(message: Message) -> dict[str, Any]:
    return {"role": message.role, "content": message.content, **message.extra}
