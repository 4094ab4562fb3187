"""What `veritune train` tells about its data: what is left out, cut, held out, and refused."""

import json

import pytest

TRAIN = ("train", "model=models/tiny", "output=run", "train.steps=1", "train.batch_size=2")
DPO = (*TRAIN, "objective=dpo")
BROKEN = {"prompt": "p", "chosen": "", "rejected": "r"}
END = 2


def pair(prompt: str, chosen: str = "good", rejected: str = "bad") -> dict[str, str]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def dialogue(prompt: str, chosen: str) -> dict[str, list[dict[str, str]]]:
    return {
        "prompt": [{"role": "user", "content": prompt}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": "bad"}],
    }


def unsound(prompt: str) -> dict[str, list[dict[str, str]]]:
    """A record that can be read and not be tokenized."""
    return dialogue(prompt, "a<|im_end|>b")


SOUND = [dialogue("p", "good"), dialogue("q", "good")]
EMPTY = dialogue("p", "")


@pytest.fixture
def write(place, monkeypatch):
    monkeypatch.setenv("VERITUNE_CACHE", str(place / "cache"))

    def write(name: str, *rows: object) -> str:
        (place / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return name

    return write


def facts(out: str) -> dict[str, str]:
    pairs = [line.split("  ", 1) for line in out.splitlines() if "  " in line.strip()]
    return {name.strip(): value.strip() for name, value in pairs if not name.startswith(" ")}


def test_skipped_problems_are_listed_with_file_and_line(write, veritune):
    data = write("a.jsonl", *SOUND, EMPTY, unsound("r"))
    held_out = write("b.jsonl", dialogue("s", "good"), unsound("t"), EMPTY)
    words = (f"data={data}", "data.on_error=skip", f"evaluation.data.files={held_out}")

    outcome = veritune(*DPO, *words, "evaluation.data.on_error=skip")

    assert outcome.code == 0, outcome.text
    told = facts(outcome.out)
    assert told["left out"] == "1 with problems, 1 not tokenizable"
    assert told["left out of held out"] == "1 with problems, 1 not tokenizable"
    notes = outcome.out.split("\n")
    for summary, problem in [
        ("1 rows of data cannot be used", "RecordError: a.jsonl, line 3: "),
        ("1 records of data cannot be tokenized", "TokenizationError: a.jsonl, line 4: "),
        ("1 held-out rows cannot be used", "RecordError: b.jsonl, line 3: "),
        ("1 held-out records cannot be tokenized", "TokenizationError: b.jsonl, line 2: "),
    ]:
        place = notes.index(f"{summary} and are left out:")
        assert notes[place + 1].startswith(problem)


def test_of_many_skipped_problems_twenty_are_listed_and_all_counted(write, veritune):
    data = write("a.jsonl", pair("p"), *[BROKEN] * 25)

    outcome = veritune(*DPO, f"data={data}", "data.on_error=skip")

    assert outcome.out.count("chosen is empty") == 20
    assert "25 rows of data cannot be used and are left out:" in outcome.out
    assert "… and 5 more (total 25)." in outcome.out


def test_held_out_problems_follow_the_rules_of_the_held_out_data(write, veritune):
    data, held_out = write("a.jsonl", *SOUND), write("b.jsonl", dialogue("s", "g"), unsound("t"))

    outcome = veritune(*DPO, f"data={data}", "data.on_error=skip", f"evaluation.data={held_out}")

    assert outcome.code == 2
    assert "b.jsonl, line 2" in outcome.err
    assert "set evaluation.data.on_error=skip to go on without them" in outcome.err


def test_what_the_limit_does_to_held_out_records_is_told(write, veritune):
    data = write("a.jsonl", pair("p"), pair("q"))
    held_out = write("b.jsonl", pair("r" * 30), pair("s", "g" * 30), pair("t"))

    outcome = veritune(*DPO, f"data={data}", f"evaluation.data={held_out}", "tokens.max_length=20")

    told = facts(outcome.out)
    assert told["held out"] == "2 records"
    assert told["left out of held out"] == (
        "1 dropped, completion too long, 1 prompts cut at their beginning"
    )
    assert "left out" not in told
    assert "prompts on both sides" not in told


def test_prompts_on_both_sides_are_counted(write, veritune):
    data = write("a.jsonl", pair("p"), pair("q"), pair("r"))
    held_out = write("b.jsonl", pair("q"), pair("r"), pair("r", "fine"), pair("s"))

    told = facts(veritune(*DPO, f"data={data}", f"evaluation.data={held_out}").out)

    assert told["prompts on both sides"] == "2; held-out numbers flatter the model"


def test_a_share_of_one_prompt_holds_out_nothing_and_is_refused(place, write, veritune):
    data = write("a.jsonl", pair("p"), pair("p", "fine"))

    outcome = veritune(*DPO, f"data={data}", "evaluation.fraction=0.5")

    assert outcome.code == 2
    assert "evaluation.fraction: nothing is held out" in outcome.err
    assert "leave evaluation.fraction out" in outcome.err
    assert not (place / "run").exists()


def test_a_limit_above_the_models_is_refused_with_both_numbers(place, write, veritune):
    data = write("a.jsonl", pair("p"))

    for command in ((*DPO, f"data={data}"), ("check", data, "model=models/tiny")):
        outcome = veritune(*command, "tokens.max_length=99999")
        assert outcome.code == 2
        assert "tokens.max_length: the limit is above that of the model" in outcome.err
        assert "99999 tokens, and the model reads at most " in outcome.err
    assert not (place / "run").exists()


def test_the_limit_is_told_beside_that_of_the_model(place, write, veritune):
    data = write("a.jsonl", pair("p"))
    limit = json.loads((place / "models/tiny/config.json").read_text())["max_position_embeddings"]

    told = facts(veritune(*DPO, f"data={data}", "tokens.max_length=50").out)

    assert told["length"] == f"at most 50 tokens (the model's limit is {limit:,})"


def test_pairs_that_a_cut_makes_identical_stop_the_run_or_are_counted(write, veritune):
    data = write("a.jsonl", pair("p", "s" * 20 + "a", "s" * 20 + "b"), pair("q"))
    words = (f"data={data}", "tokens.max_length=20", "tokens.long_completions=cut")

    stopped = veritune(*DPO, *words)
    dropped = veritune(*DPO, *words, "data.identical_pairs=drop")

    assert stopped.code == 2
    assert "a.jsonl, line 1: chosen and rejected are the same tokens" in stopped.err
    assert dropped.code == 0
    assert "1 pairs of the same tokens" in facts(dropped.out)["left out"]


@pytest.mark.parametrize(
    ("setting", "files"),
    [("data", {"data": "ties.jsonl"}), ("evaluation.data", {"evaluation.data": "ties.jsonl"})],
)
def test_scores_that_are_all_ties_make_no_pairs_and_that_is_said(setting, files, write, veritune):
    tie = {"prompt": "p", "completions": ["a", "b"], "scores": [1, 1]}
    alone = {"prompt": "q", "completions": ["a"], "scores": [1]}
    write("ties.jsonl", tie, tie, alone)
    write("sound.jsonl", tie | {"scores": [1, 2]})

    files = {"data": "sound.jsonl", **files}
    outcome = veritune(*DPO, *(f"{name}={file}" for name, file in files.items()))

    assert outcome.code == 2
    assert f"{setting}: none of the scored records makes a paired record" in outcome.err
    assert "2 records whose scores are all equal, 1 records with one completion" in outcome.err


def test_kto_blames_a_held_out_set_of_one_prompt_on_the_evaluation(write, veritune):
    def label(prompt: str, is_good: bool) -> dict[str, object]:
        return {"prompt": prompt, "completion": "text", "label": is_good}

    data = write("a.jsonl", label("p", True), label("q", False))
    held_out = write("b.jsonl", label("r", True), label("r", False))

    outcome = veritune(*TRAIN, "objective=kto", f"data={data}", f"evaluation.data={held_out}")

    assert outcome.code == 2
    assert "evaluation: kto needs at least two different prompts" in outcome.err


def test_token_ids_without_an_end_are_counted_by_train_and_check(write, veritune):
    ended = {"prompt_ids": [65, 66], "chosen_ids": [67, END], "rejected_ids": [68]}
    data = write("a.jsonl", ended, ended | {"chosen_ids": [70]})
    held_out = write("b.jsonl", ended | {"prompt_ids": [71]})

    train = veritune(*DPO, f"data={data}", f"evaluation.data={held_out}")
    check = veritune("check", data, "model=models/tiny")

    expected = "3 completions end in no end-of-sequence token"
    assert facts(train.out)["ends"] == facts(check.out)["ends"] == expected
    assert facts(train.out)["ends of held out"].startswith("1 completions end in no")


@pytest.mark.parametrize(("batch_size", "warned"), [(2, True), (4, False)])
def test_a_batch_too_small_to_hold_both_classes_is_warned_of(batch_size, warned, write, veritune):
    rows = [{"prompt": f"p{n}", "completion": "good", "label": n == 0} for n in range(4)]
    data = write("a.jsonl", *rows)

    words = (f"data={data}", "objective=rdro", f"train.batch_size={batch_size}")
    outcome = veritune(*TRAIN, *words)

    told = facts(outcome.out)["desirable"]
    assert told.startswith("0.2500 of the records; alpha is this fraction")
    assert ("raise train.batch_size to 4 or more" in told) == warned


def test_a_second_run_takes_its_tokens_from_the_cache_and_says_so(place, write, veritune):
    data = write("a.jsonl", *SOUND, EMPTY, unsound("r"))
    held_out = write("b.jsonl", dialogue("p", "good"), unsound("t"), EMPTY)
    words = (f"data={data}", "data.on_error=skip", f"evaluation.data.files={held_out}")
    words += ("evaluation.data.on_error=skip",)

    first, again = veritune(*DPO, *words), veritune(*DPO, *words, "output=again")

    assert first.code == again.code == 0, first.text + again.text
    told, told_again = facts(first.out), facts(again.out)
    made, made_held_out = told.pop("tokens").split("; ")
    assert made.startswith("4 rows prepared in ")
    assert made_held_out.startswith("3 rows prepared in ")
    kept, kept_held_out = told_again.pop("tokens").split("; ")
    for text, before in ((kept, made), (kept_held_out, made_held_out)):
        folder = before.rpartition("kept in ")[2]
        assert folder.startswith(str(place / "cache" / "tokens"))
        assert text.startswith(f"from {folder} in ")
    names = ("data", "left out", "held out", "left out of held out", "prompts on both sides")
    assert [told.get(name) for name in names] == [told_again.get(name) for name in names]
    assert told["prompts on both sides"].startswith("1; ")
    for name in ("a.jsonl, line 4", "b.jsonl, line 3"):
        assert name in first.out
        assert name in again.out
