"""Processes that train together, and one by itself."""

import threading

import pytest
import torch

from manta.errors import DataError, TrainingError
from manta.training.team import Gone, Processes, Team, own_device, several


def test_one_process_decides_by_itself():
    team = Team()
    assert team.first and team.size == 1
    assert team.agree(3) == 3 and team.gather(3) == [3]
    assert team.alone(lambda: "done") == "done" and team.in_turn(lambda: "done") == "done"
    with pytest.raises(RuntimeError), team.meeting():
        raise RuntimeError("nothing of others")
    team.close()


class Pair(Processes):
    """Two threads in the place of two processes."""

    def __init__(self, rank, box, barrier):
        self.rank, self.size, self.box, self.barrier = rank, 2, box, barrier

    def agree(self, value):
        if self.first:
            self.box["value"] = value
        self.barrier.wait(5)
        found = self.box["value"]
        self.barrier.wait(5)
        return found


def both(work):
    """What two processes make of the same work: their values or errors."""
    box, barrier, found = {}, threading.Barrier(2), {}

    def run(rank):
        try:
            found[rank] = work(Pair(rank, box, barrier))
        except Exception as error:
            found[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_the_first_works_and_tells():
    done = []
    found = both(lambda team: team.alone(lambda: done.append(team.rank) or "told"))
    assert found == {0: "told", 1: "told"} and done == [0]
    done.clear()
    found = both(lambda team: team.in_turn(lambda: done.append(team.rank) or team.rank))
    assert found == {0: 0, 1: 1} and done == [0, 1]


def test_an_error_of_the_first_is_everybodys_and_said_once():
    def fails():
        raise DataError("no such file")

    for way in ("alone", "in_turn"):
        found = both(lambda team, way=way: getattr(team, way)(fails))
        assert all(isinstance(error, DataError) for error in found.values())
        assert str(found[1]) == "no such file"


def test_who_has_lost_another_says_so():
    pair = Pair(1, {}, None)
    with pytest.raises(Gone, match="process 2 of 2 has lost another one") as caught, pair.meeting():
        raise RuntimeError("[gloo/transport/tcp/pair.cc:542] Connection closed by peer [127.0.0.1]:1")
    assert isinstance(caught.value, TrainingError)
    with pytest.raises(RuntimeError, match="sizes differ"), pair.meeting():
        raise RuntimeError("sizes differ")


def test_processes_are_counted_as_a_launcher_says(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert several() == 1
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert several() == 1  # of a cluster's own, without a rank
    monkeypatch.setenv("RANK", "2")
    assert several() == 4
    assert own_device("cpu") == "cpu" and own_device("cuda:1") == "cuda:1"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert own_device(None) == "cuda:1" and own_device("cuda") == "cuda:1"
