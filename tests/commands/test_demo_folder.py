def test_a_tilde_in_the_demo_s_output_is_the_home_folder(place, veritune, monkeypatch):
    monkeypatch.setenv("HOME", str(place / "home"))
    taken = place / "home" / "demo"
    taken.mkdir(parents=True)
    (taken / "notes.txt").write_text("mine")

    outcome = veritune("demo", "output=~/demo")

    assert outcome.code == 2
    assert "the output folder is not empty" in outcome.err
    assert not (place / "~").exists()
