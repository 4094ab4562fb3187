from veritune.records.content import content_key, prompt_key
from veritune.records.kinds import (
    Message,
    Origin,
    Paired,
    Prompt,
    Rendering,
    Scored,
    TokenIds,
    Unpaired,
)

HERE, THERE = Origin("a", 1), Origin("b", 2)


def test_the_origin_does_not_count():
    assert content_key(Paired("p", "c", "r", HERE)) == content_key(Paired("p", "c", "r", THERE))


def test_the_order_of_keys_does_not_count():
    one = (Message("user", "x", {"a": 1, "b": 2}),)
    two = (Message("user", "x", {"b": 2, "a": 1}),)

    assert content_key(one) == content_key(two)


def test_everything_else_counts():
    tools = Rendering(({"name": "f"},))
    contents = [
        "x",
        (Message("user", "x"),),
        (Message("assistant", "x"),),
        (Message("user", "x", {"name": "Ann"}),),
        TokenIds((1, 2)),
        TokenIds((12,)),
        (),
        "",
        Paired("p", "c", "r", HERE),
        Paired("p", "r", "c", HERE),
        Paired("p", "c", "r", HERE, tools),
        Unpaired("p", "c", True, HERE),
        Unpaired("p", "c", False, HERE),
        Scored("p", ("c", "r"), (1.0, 0.0), HERE),
        Scored("p", ("c", "r"), (1.0, 0.5), HERE),
        Prompt("p", HERE),
    ]

    assert len({content_key(content) for content in contents}) == len(contents)


def test_half_a_surrogate_pair_has_a_key():
    assert content_key("\ud83d") != content_key("\ud83e")


def test_the_prompt_key_covers_tools_but_no_completion():
    tools = Rendering(({"name": "f"},))

    assert prompt_key(Prompt("p", HERE)) == prompt_key(Paired("p", "c", "r", THERE))
    assert prompt_key(Prompt("p", HERE)) != prompt_key(Prompt("p", HERE, tools))


def test_the_key_is_the_same_in_every_version():
    """Caches on disk are keyed by it; a change of the form must be meant."""
    form = b'{"text":"p"}'
    import hashlib

    assert content_key("p") == hashlib.blake2b(form, digest_size=16).digest()
