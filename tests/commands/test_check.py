import json
import re

import pytest

from veritune.models.tiny import byte_level_tokenizer, tiny_model, write_tiny_model

PAIR = {"prompt": "What is two and two?", "chosen": "Four.", "rejected": "Five, I think."}
LABEL = {"prompt": "Name a color.", "completion": "Blue.", "label": True}
SCORED = {"prompt": "Name a tree.", "completions": ["Oak.", "Salt."], "scores": [2, 1]}


@pytest.fixture
def write(place):
    def write(*rows: dict, name: str = "a.jsonl") -> str:
        (place / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return name

    return write


def facts(out: str) -> dict[str, str]:
    """Name to value of the lines in two columns."""
    pairs = [line.split("  ", 1) for line in out.splitlines() if "  " in line.strip()]
    return {name.strip(): value.strip() for name, value in pairs if not name.startswith(" ")}


def test_check_counts_pairs(write, veritune):
    reversed_pair = PAIR | {"chosen": PAIR["rejected"], "rejected": PAIR["chosen"]}
    circle = [
        {"prompt": "q", "chosen": better, "rejected": worse}
        for better, worse in (("a", "b"), ("b", "c"), ("c", "a"))
    ]
    outcome = veritune("check", write(PAIR, PAIR, reversed_pair, *circle))

    assert outcome.code == 0
    assert outcome.err == ""
    assert facts(outcome.out) == {
        "file": "a.jsonl",
        "kind": "paired",
        "rows": "6, of which 6 can be used",
        "prompts": "2 distinct",
        "duplicates": "1 records repeat an earlier one",
        "contradictions": "1 pairs in both orders, 1 prompts with a circle of preferences",
    }


def test_check_counts_identical_pairs_where_they_are_no_problem(write, veritune):
    identical = PAIR | {"rejected": PAIR["chosen"]}
    for treatment in ("drop", "keep"):
        outcome = veritune("check", write(PAIR, identical), f"data.identical_pairs={treatment}")
        assert outcome.code == 0
        assert facts(outcome.out)["identical pairs"] == "1"


def test_check_counts_labels(write, veritune):
    good, bad = LABEL, LABEL | {"completion": "Salt.", "label": False}
    other = LABEL | {"prompt": "Name a tree."}
    # One prompt with 3 of 4 labels desirable, one completion labelled both ways, one prompt alone.
    rows = [good, good, bad, bad | {"label": True}, other]
    outcome = veritune("check", write(*rows))

    assert outcome.code == 0
    told = facts(outcome.out)
    assert told["kind"] == "unpaired"
    assert told["contradictions"] == "1 completions with both labels"
    assert told["desirable"] == "0.8000 of the records (rdro's alpha, ddro's t)"
    assert told["by prompt"] == "from 0.75 to 0.75 over 1 prompts with several labels"


def test_check_says_when_labels_differ_between_prompts_by_more_than_chance(write, veritune):
    rows = [
        LABEL | {"prompt": prompt, "completion": f"{i}", "label": prompt == "easy"}
        for prompt in ("easy", "hard")
        for i in range(10)
    ]
    # Share 1/2; each prompt is 5 from its mean, variance 10 / 4: 2 * 25 / 2.5 over 2 - 1.
    told = facts(veritune("check", write(*rows)).out)
    assert told["by prompt"] == (
        "from 0.00 to 1.00 over 2 prompts with several labels; "
        "spread 20.0 times that of chance (more than chance)"
    )


def test_check_says_when_no_prompt_has_several_labels(write, veritune):
    told = facts(veritune("check", write(LABEL, LABEL | {"prompt": "q", "label": False})).out)
    assert told["desirable"].startswith("0.5000 of the records")
    assert told["by prompt"] == "no prompt has several labels"


def test_check_counts_scores(write, veritune):
    three = {"prompt": "q", "completions": ["a", "b", "c"], "scores": [0.5, 0.5, -3]}
    tied = {"prompt": "r", "completions": ["a", "b"], "scores": [1, 1]}
    told = facts(veritune("check", write(SCORED, three, tied)).out)

    assert told["completions"] == "records by number of completions: 2 with 2, 1 with 3"
    assert told["scores"] == "from -3 to 2"
    assert told["ties"] == "2 records with equal scores, 1 with one score for all"


def test_check_tells_of_prompts_that_are_held_out_too(write, veritune):
    file = write(PAIR, PAIR | {"prompt": "q"}, PAIR | {"prompt": "r"})
    held_out = write(PAIR | {"prompt": "r"}, PAIR | {"prompt": "s"}, name="held-out.jsonl")

    outcome = veritune("check", file, f"evaluation={held_out}")

    assert outcome.code == 0
    assert facts(outcome.out)["leaks"] == "1 prompts are held out too, in held-out.jsonl"
    assert "\n  a.jsonl, line 3\n" in outcome.out
    assert "a.jsonl, line 1" not in outcome.out


def test_check_reads_several_files_with_strange_names(write, veritune):
    files = [
        write(PAIR, name=name) for name in ("it's.jsonl", "a b.jsonl", "ö🙂.jsonl", "[1].jsonl")
    ]
    told = facts(veritune("check", *files).out)
    assert told["file"] == ", ".join(files)
    assert told["rows"] == "4, of which 4 can be used"


def test_check_takes_settings_of_the_data_beside_the_files(write, veritune):
    file = write({"question": "q", "chosen": "c", "rejected": "r"})
    assert veritune("check", file).code == 2
    assert veritune("check", file, "data.columns.question=prompt").code == 0
    assert veritune("check", "data.columns.question=prompt", file).code == 0


def test_check_takes_a_settings_file_beside_the_files(write, place, veritune):
    (place / "check.yaml").write_text("data: {columns: {question: prompt}, files: [gone.jsonl]}\n")
    file = write({"question": "q", "chosen": "c", "rejected": "r"})
    assert veritune("check", file, "check.yaml").code == 0


def test_check_lists_every_problem_and_leaves_with_exit_code_2(write, veritune):
    outcome = veritune("check", write(PAIR, PAIR | {"chosen": ""}, PAIR | {"rejected": 7}))

    assert outcome.code == 2
    assert facts(outcome.out)["rows"] == "3, of which 1 can be used"
    assert "2 of 3 rows cannot be used" in outcome.out
    assert "RecordError: a.jsonl, line 2: chosen is empty" in outcome.out
    assert 'RecordError: a.jsonl, line 3: "rejected" is neither text' in outcome.out
    assert outcome.err == "2 of 3 rows cannot be used; they are listed in the report\n"


@pytest.mark.parametrize("on_error", ["stop", "skip"])
def test_check_tells_of_problems_whatever_a_run_would_do_about_them(on_error, write, veritune):
    outcome = veritune("check", write(PAIR, PAIR | {"chosen": ""}), f"data.on_error={on_error}")
    assert outcome.code == 2


def test_check_shows_twenty_problems_and_the_total(write, veritune):
    outcome = veritune("check", write(PAIR, *[PAIR | {"chosen": ""}] * 25))
    assert outcome.out.count("chosen is empty") == 20
    assert "… and 5 more (total 25)." in outcome.out


# One token per byte: lengths in tokens are lengths in characters, and one for the end.


def test_check_shows_percentiles_of_lengths(write, veritune):
    lengths = [10 * i for i in range(1, 22)]
    rows = [PAIR | {"prompt": "x" * n, "chosen": "c" * n, "rejected": "r" * n} for n in lengths]
    outcome = veritune("check", write(*rows), "model=models/tiny", "examples=0")

    table = {line.split()[0]: line.split()[1:] for line in outcome.out.splitlines() if line}
    assert outcome.code == 0
    assert table["length"][2:] == [
        "min",
        "5",
        "%",
        "25",
        "%",
        "median",
        "75",
        "%",
        "95",
        "%",
        "max",
    ]
    # Of 21 values in order, the percentile p is number 20 p / 100, counted from 0.
    assert table["prompt"] == ["10", "20", "60", "110", "160", "200", "210"]
    assert table["completion"] == ["11", "21", "61", "111", "161", "201", "211"]


def test_check_shows_lengths_of_the_data_and_not_those_of_the_limit(write, veritune):
    rows = [PAIR | {"prompt": "x" * n} for n in (5, 500)]
    file = write(*rows)
    outcome = veritune("check", file, "model=models/tiny", "tokens.max_length=50", "examples=0")
    table = {line.split()[0]: line.split()[1:] for line in outcome.out.splitlines() if line}
    assert (table["prompt"][0], table["prompt"][-1]) == ("5", "500")


def test_check_counts_what_a_limit_would_cut_and_drop(write, veritune):
    fits = {"prompt": "p" * 10, "chosen": "c" * 9, "rejected": "r"}
    long_prompt = fits | {"prompt": "p" * 11}
    long_completion = fits | {"chosen": "c" * 20}
    file = write(fits, long_prompt, long_completion)
    words = ("check", file, "model=models/tiny", "tokens.max_length=20", "examples=0")

    told = facts(veritune(*words).out)
    assert told["limit"] == "20 tokens for a prompt with its longest completion"
    assert told["would be cut"] == "1 prompts at their beginning, 0 completions at their end"
    assert told["would be dropped"] == "1 of 3 records"
    # A prompt of 10 once, and completions of 9 and 1: their end tokens predict nothing, so they are
    # not computed. Twice, because one prompt is cut to 10. Apart, the prompt comes twice.
    assert told["one epoch"] == "40 tokens to compute with shared prompts, 60 without"

    told = facts(veritune(*words, "tokens.long_completions=cut").out)
    # A completion of 21 is cut to 19, and then one token of its prompt is left: cut at both ends.
    assert told["would be cut"] == "2 prompts at their beginning, 1 completions at their end"
    assert told["would be dropped"] == "0 of 3 records"


def test_check_uses_the_limit_of_the_model_where_none_is_set(place, write, veritune):
    model = tiny_model("qwen2", vocab_size=259, hidden_size=16, num_heads=2, max_positions=64)
    write_tiny_model(place / "short", model, byte_level_tokenizer())
    told = facts(veritune("check", write(PAIR), "model=short").out)
    assert told["limit"] == "64 tokens for a prompt with its longest completion"


def shown(out: str) -> list[str]:
    """What stands behind the facts: the examples."""
    return out[out.index("\n\na.jsonl, line") + 2 :].splitlines()


def test_check_shows_plain_text_with_the_loss_on_the_completion_and_its_end(write, veritune):
    outcome = veritune("check", write(PAIR), "model=models/tiny")
    assert shown(outcome.out) == [
        "a.jsonl, line 1: prompt of 20 tokens",
        "What is two and two?",
        "chosen: 6 tokens, 6 bear loss (between ⟦ and ⟧)",
        "⟦Four.<|im_end|>⟧",
        "rejected: 15 tokens, 15 bear loss (between ⟦ and ⟧)",
        "⟦Five, I think.<|im_end|>⟧",
    ]


def test_check_shows_a_dialogue_with_the_loss_on_the_assistant_alone(write, veritune):
    said = [("user", "Hi"), ("assistant", "Yes"), ("user", "Why"), ("assistant", "So")]
    turns = [{"role": role, "content": content} for role, content in said]
    outcome = veritune("check", write({"messages": turns}), "model=models/tiny")

    # "<|im_start|>user\nHi<|im_end|>\n" is 1 + 7 + 1 + 1 tokens, "<|im_start|>assistant\n" 1 + 10.
    # From "Yes" on: 3 + 1 bear loss, 1 + (1 + 8 + 1 + 1) + 11 do not, 2 + 1 do.
    assert shown(outcome.out) == [
        "a.jsonl, line 1: prompt of 21 tokens",
        "<|im_start|>user",
        "Hi<|im_end|>",
        "<|im_start|>assistant",
        "",
        "completion: 30 tokens, 7 bear loss (between ⟦ and ⟧)",
        "⟦Yes<|im_end|>⟧",
        "<|im_start|>user",
        "Why<|im_end|>",
        "<|im_start|>assistant",
        "⟦So<|im_end|>⟧",
    ]


def test_check_shows_the_loss_on_the_last_answer_alone_where_that_is_set(write, veritune):
    said = [("user", "Hi"), ("assistant", "Yes"), ("user", "Why"), ("assistant", "So")]
    turns = [{"role": role, "content": content} for role, content in said]
    words = ("check", write({"messages": turns}), "model=models/tiny", "tokens.loss_on=last")
    out = veritune(*words).out
    assert "30 tokens, 3 bear loss" in out
    assert out.count("⟦So<|im_end|>⟧") == 1
    assert "Yes<|im_end|>⟧" not in out


@pytest.mark.parametrize(
    ("row", "names"),
    [
        (LABEL, ["desirable completion: "]),
        (LABEL | {"label": False}, ["undesirable completion: "]),
        (SCORED, ["completion of score 2: ", "completion of score 1: "]),
        ({"prompt": "p", "completion": "c"}, ["completion: "]),
        ({"prompt": "p"}, []),
    ],
)
def test_check_says_of_each_completion_what_the_data_say(row, names, write, veritune):
    outcome = veritune("check", write(row), "model=models/tiny")
    assert outcome.code == 0
    told = [line for line in shown(outcome.out) if "bear loss" in line]
    assert len(told) == len(names)
    assert all(line.startswith(name) for line, name in zip(told, names, strict=True))


def test_check_shows_as_many_examples_as_asked_for(write, veritune):
    file = write(*[PAIR | {"prompt": f"question {i}"} for i in range(5)])
    for number in (0, 2, 9):
        out = veritune("check", file, "model=models/tiny", f"examples={number}").out
        assert out.count("chosen: ") == min(number, 5)


def test_check_leaves_out_the_middle_of_a_long_text(write, veritune):
    outcome = veritune(
        "check", write(PAIR | {"prompt": "a" * 100 + "b" * 100}), "model=models/tiny"
    )
    assert "a" * 80 + " … 40 tokens … " + "b" * 80 in outcome.out


def test_check_shows_control_characters_as_escapes_and_smileys_as_written(write, veritune):
    outcome = veritune(
        "check", write(PAIR | {"prompt": "\x1b[2J :smile: [bold]\x07"}), "model=models/tiny"
    )
    assert "\\x1b[2J :smile: [bold]\\x07" in outcome.out
    assert "\x1b" not in outcome.out


def test_check_counts_records_that_the_tokenizer_refuses(write, veritune):
    dialogue = {
        "prompt": [{"role": "user", "content": "Hi"}],
        "chosen": [{"role": "assistant", "content": "a<|im_end|>b"}],
        "rejected": [{"role": "assistant", "content": "c"}],
    }
    sound = dialogue | {"chosen": [{"role": "assistant", "content": "ab"}]}
    broken = PAIR | {"chosen": ""}
    outcome = veritune("check", write(sound, dialogue, broken), "model=models/tiny")

    assert outcome.code == 2
    assert outcome.err.startswith("2 of 3 rows cannot be used")
    # What the file says comes first, then what the tokenizer says.
    assert outcome.out.index("line 3: chosen is empty") < outcome.out.index("line 2: the text of a")


def test_check_stops_with_the_problems_where_the_tokenizer_refuses_every_record(write, veritune):
    dialogue = {"messages": [{"role": r, "content": "x"} for r in ("user", "assistant")]}
    outcome = veritune("check", write(dialogue), "model=models/no-template")
    assert outcome.code == 2
    assert "a.jsonl, line 1: the record holds messages" in outcome.err
    assert "data.on_error=skip" not in outcome.err


def test_check_tells_of_an_end_of_turn_at_which_generation_does_not_stop(place, write, veritune):
    model = tiny_model("qwen2", vocab_size=259, hidden_size=16, num_heads=2)
    tokenizer = byte_level_tokenizer()
    tokenizer.eos_token = "<|endoftext|>"
    write_tiny_model(place / "other-end", model, tokenizer)
    out = veritune("check", write(PAIR), "model=other-end").out
    assert facts(out)["end of turn"].startswith("the template ends a turn by <|im_end|>, at which")
    assert "end of turn" not in facts(veritune("check", write(PAIR), "model=models/tiny").out)


@pytest.mark.parametrize("row", [PAIR, LABEL, SCORED])
def test_a_report_on_a_small_file_fits_into_a_hundred_columns(row, write, veritune):
    out = veritune("check", write(row, row), "model=models/tiny").out
    assert max(len(line.rstrip()) for line in out.splitlines()) <= 100


def test_check_finds_pairs_that_the_limit_makes_identical(write, veritune):
    alike = PAIR | {"chosen": "s" * 20 + "a", "rejected": "s" * 20 + "b"}
    words = ("check", write(PAIR, alike), "model=models/tiny", "tokens.max_length=20")
    words = (*words, "tokens.long_completions=cut")

    stopped = veritune(*words)
    dropped = veritune(*words, "data.identical_pairs=drop")

    assert (stopped.code, dropped.code) == (2, 0)
    assert "a.jsonl, line 2: chosen and rejected are the same tokens" in stopped.out
    assert facts(stopped.out)["same tokens"] == "1 pairs within the limit"
    assert facts(dropped.out)["same tokens"] == "1 pairs within the limit"


def memory_table(out: str) -> dict[str, int]:
    """Part to bytes of the memory plan."""
    start = out.index("memory of training on cpu")
    rows = [line.rsplit(maxsplit=3) for line in out[start:].splitlines()[1:]]
    table = {}
    for row in rows:
        table[row[0]] = int(row[1].replace(",", ""))
        if row[0].startswith("at most"):
            break
    return table


def test_check_shows_what_a_run_would_take(write, veritune):
    words = ("check", write(PAIR), "model=models/tiny", "examples=0")
    outcome = veritune(*words)
    table = memory_table(outcome.out)
    # One layer of 16 numbers and a head of 259 rows, tied; AdamW keeps two numbers for each.
    assert table["optimizer"] == 2 * table["gradients"]
    assert table["gradients"] <= table["weights"]
    inner = ("gradients", "optimizer", "activations", "head and working memory")
    assert table["at most, at a time"] == table["weights"] + sum(table[name] for name in inner)
    told = facts(outcome.out)
    assert told["rows"] == "up to 39 tokens"
    assert told["memory"].endswith(" there")

    adapted = memory_table(veritune(*words, "adapter={rank: 1}").out)
    assert adapted["gradients"] < table["gradients"] / 4


@pytest.mark.parametrize(("memory", "is_enough"), [("0.5MB", True), ("0.4MB", False)])
def test_check_says_what_to_change_where_a_run_does_not_fit(memory, is_enough, write, veritune):
    file = write(PAIR | {"prompt": "x" * 300}, PAIR)
    words = ("check", file, "model=models/tiny", "examples=0", f"train.memory={memory}")
    outcome = veritune(*words, "train.gradient_checkpointing=false")
    assert outcome.code == 0
    told = facts(outcome.out)
    assert told["memory"].endswith("it does not fit")
    assert re.match(r"(train|tokens|adapter)\S*=\S+ \([\d.]+ kB\)", told["to change"])
    assert outcome.out.endswith("and a smaller model\n") != is_enough


def test_check_proposes_a_smaller_model_where_no_setting_helps(write, veritune):
    words = ("check", write(PAIR), "model=models/tiny", "examples=0", "train.memory=0.01MB")
    told = facts(veritune(*words).out)
    assert told["memory"].endswith("it does not fit")
    assert told["rows"].endswith(", activations of all layers computed again")
    assert told["to change"] == "a smaller model"
