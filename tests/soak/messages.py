"""Point to point: all paths, sizes, wildcards and requests; giving up in time; what does not fit."""

from __future__ import annotations

import time

import numpy as np

import xccl
from soak.scene import Scene, expect


def sendrecv(scene: Scene) -> None:
    """Around a ring, with as many bytes from each rank as luck has it."""
    lengths = [scene.length() for _ in range(scene.size)]
    before, behind = (scene.rank - 1) % scene.size, (scene.rank + 1) % scene.size
    array = scene.placed(scene.content(scene.rank, 0, lengths[scene.rank]))
    into = scene.room(lengths[before] + 3)
    status = scene.comm.sendrecv(array, behind, into, src=before, send_tag=5, recv_tag=5)
    assert status == (before, 5, lengths[before]), status
    scene.check(into[: lengths[before]], scene.content(before, 0, lengths[before]), f"from rank {before}")


def _plan(scene: Scene) -> list[tuple[int, int, int, int]]:
    """Messages: source, target, tag, bytes."""
    draw = scene.common.integers
    return [
        (int(draw(scene.size)), int(draw(scene.size)), int(draw(3)), scene.length())
        for _ in range(int(draw(1, 16)))
    ]


def _begin_sends(scene: Scene, plan: list[tuple[int, int, int, int]]) -> list[xccl.Request]:
    return [
        scene.comm.isend(scene.placed(scene.content(scene.rank, number, nbytes)), target, tag)
        for number, (source, target, tag, nbytes) in enumerate(plan)
        if source == scene.rank
    ]


def _finish(scene: Scene, request: xccl.Request) -> xccl.Status:
    if scene.own.random() < 0.3:
        while not request.test():
            time.sleep(0)
        assert request.done
    return request.wait()


def exchange(scene: Scene) -> None:
    """Requests between any ranks, oneself too; received in the order of each sender, finished in any order."""
    plan = _plan(scene)
    requests = _begin_sends(scene, plan) if scene.own.random() < 0.5 else None
    received = []
    for number, (source, target, tag, nbytes) in enumerate(plan):
        if target == scene.rank:
            into = scene.room(nbytes)
            received.append((number, into, scene.comm.irecv(into, source, tag)))
    sends = _begin_sends(scene, plan) if requests is None else requests
    for one in scene.own.permutation(len(received)):
        number, into, request = received[one]
        source, _, tag, nbytes = plan[number]
        assert _finish(scene, request) == (source, tag, nbytes)
        scene.check(into, scene.content(source, number, nbytes), f"message {number} from rank {source}")
    for send in sends:
        _finish(scene, send)


def exchange_any(scene: Scene) -> None:
    """The same, received one by one from anybody with any tag: messages of a pair and tag come in order."""
    plan = _plan(scene)
    sends = _begin_sends(scene, plan)
    mine = [number for number, (_, target, _, _) in enumerate(plan) if target == scene.rank]
    most = max([plan[number][3] for number in mine], default=0)
    while mine:
        probed = scene.comm.probe() if scene.own.random() < 0.3 else None
        source, tag = (xccl.ANY_SOURCE, xccl.ANY_TAG) if probed is None else (probed.src, probed.tag)
        if scene.own.random() < 0.3:
            found = scene.comm.recv_view(source, tag)
            with found as borrowed:
                got = np.array(borrowed)
        else:
            into = scene.room(most)
            found = scene.comm.recv(into, source, tag)
            got = into[: found.nbytes]
        number = next(n for n in mine if (plan[n][0], plan[n][2]) == (found.src, found.tag))
        assert found.nbytes == plan[number][3], (found, plan[number])
        scene.check(got, scene.content(found.src, number, found.nbytes), f"message {number}")
        mine.remove(number)
    for send in sends:
        _finish(scene, send)
    scene.comm.barrier()  # or a faster rank's next message would be taken for one of these


def pairs(scene: Scene) -> None:
    """Two by two: blocking sends one way, then the other, received in all ways."""
    order = scene.common.permutation(scene.size)
    lengths = [scene.length() for _ in range(int(scene.common.integers(1, 6)))]
    place = int(np.flatnonzero(order == scene.rank)[0])
    if place ^ 1 >= scene.size:
        return
    peer = int(order[place ^ 1])
    for turn in (0, 1):
        for number, nbytes in enumerate(lengths):
            if place % 2 == turn:
                scene.comm.send(scene.placed(scene.content(scene.rank, number, nbytes)), peer, tag=number)
            else:
                _receive(scene, peer, number, nbytes)


def _receive(scene: Scene, source: int, tag: int, nbytes: int) -> None:
    expected = scene.content(source, tag, nbytes)
    way = scene.own.integers(4)
    if way == 0:
        while (status := scene.comm.iprobe(source, tag)) is None:
            time.sleep(0)
        assert status == (source, tag, nbytes)
    if way == 1:
        assert scene.comm.probe(source, tag) == (source, tag, nbytes)
    if way == 2:
        with scene.comm.recv_view(source, tag) as borrowed:
            scene.check(borrowed, expected, f"borrowed from rank {source}")
        return
    into = scene.room(nbytes)
    assert scene.comm.recv(into, source, tag) == (source, tag, nbytes)
    scene.check(into, expected, f"from rank {source}")


def cancel(scene: Scene) -> None:
    """Requests that nobody answers are taken back; the receiver has the message or nothing, as its sender says."""
    unanswered = scene.comm.irecv(scene.room(8), xccl.ANY_SOURCE, tag=90)
    assert unanswered.cancel()
    nbytes = scene.length()
    before, behind = (scene.rank - 1) % scene.size, (scene.rank + 1) % scene.size
    into = scene.room(nbytes)
    early = scene.comm.irecv(into, before, tag=91) if scene.own.random() < 0.5 else None
    send = scene.comm.isend(scene.placed(scene.content(scene.rank, 0, nbytes)), behind, tag=91)
    if scene.own.random() < 0.5:
        time.sleep(scene.own.uniform(0, 0.002))
    taken_back = send.cancel()
    verdict = np.zeros(1, np.uint8)
    scene.comm.sendrecv(np.array([taken_back], np.uint8), behind, verdict, before, send_tag=92, recv_tag=92)
    if verdict[0]:
        while early is not None and not early.cancel():
            time.sleep(0)  # its sender is just taking the message back
        assert scene.comm.iprobe(before, tag=91) is None
    else:
        received = early or scene.comm.irecv(into, before, tag=91)
        assert received.wait().nbytes == nbytes
        scene.check(into, scene.content(before, 0, nbytes), f"from rank {before}")
    if not taken_back:
        send.wait()
    scene.comm.barrier()  # who asked of a rank that has closed meanwhile would get Closed


def too_late(scene: Scene) -> None:
    """Receives and sends whose deadline passes, as it is meant to: nothing was taken, nothing was sent."""
    behind = (scene.rank + 1) % scene.size
    expect(xccl.Timeout, scene.comm.recv, scene.room(8), xccl.ANY_SOURCE, tag=93, timeout=0.005)
    expect(xccl.Timeout, scene.comm.send, scene.placed(np.zeros(300_000)), behind, tag=94, timeout=0.005)
    expect(xccl.Timeout, scene.comm.probe, xccl.ANY_SOURCE, tag=95, timeout=0.002)
    scene.comm.barrier()
    assert scene.comm.iprobe(tag=94) is None
    scene.comm.barrier()


def truncated(scene: Scene) -> None:
    """A message that does not fit stays for a larger receive."""
    nbytes = scene.length() + 1
    before, behind = (scene.rank - 1) % scene.size, (scene.rank + 1) % scene.size
    send = scene.comm.isend(scene.placed(scene.content(scene.rank, 0, nbytes)), behind, tag=96)
    error = expect(xccl.Truncated, scene.comm.recv, scene.room(nbytes - 1), before, tag=96)
    assert str(nbytes) in str(error), error
    into = scene.room(nbytes)
    scene.comm.recv(into, before, tag=96)
    scene.check(into, scene.content(before, 0, nbytes), f"from rank {before}")
    send.wait()
