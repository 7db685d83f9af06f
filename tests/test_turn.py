from threading import Thread

from stages import turn


def test_nobody_wants_the_turn_of_a_process_that_is_alone(tmp_path, capsys):
    for _ in range(2):
        with turn.take(tmp_path / "lock", "waiting") as is_wanted:
            assert not is_wanted()
    assert capsys.readouterr().out == ""


def test_who_holds_the_turn_sees_that_another_wants_it_who_gets_it_next(tmp_path, capsys):
    turns = []

    def take_second():
        with turn.take(tmp_path / "lock", "waiting") as is_wanted:
            turns.append(("second", is_wanted()))

    with turn.take(tmp_path / "lock", "waiting") as is_wanted:
        second = Thread(target=take_second)
        second.start()
        while not is_wanted():
            assert second.is_alive()
        turns.append(("first", True))
    second.join()
    assert turns == [("first", True), ("second", False)]
    assert capsys.readouterr().out == "waiting\n"
