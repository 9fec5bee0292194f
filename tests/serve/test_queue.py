"""Many clients at once: each gets its own labels, or is told to come again; and what a bad client costs."""

import asyncio
import threading

import numpy as np
import pytest

pytest.importorskip("fastapi", reason='fastapi is not installed: pip install "stdc-fast[serve]"')
from served import LONG, Client, Gated, png, running, until

from stdc_fast import encode
from stdc_fast.serve import Settings, bodies
from stdc_fast.serve.labeller import Labeller

SIZES = [(64, 96), (96, 64), (70, 70)]


def whole(content):
    return [content, b""]


@pytest.fixture
def pictures(photo):
    """(file, array) by number: all are different, of three sizes in turn."""
    return [(png(a), a) for i in range(24) for a in [photo(*SIZES[i % 3], seed=i)]]


@pytest.mark.parametrize("max_batch", [1, 4])
def test_each_gets_its_own_labels(model, pictures, max_batch):
    gated = Gated(model)
    want = [encode.labels(model.predict(array)) for _, array in pictures]
    assert len(set(want)) == len(want)

    async def story():
        async with running(gated.model, max_batch=max_batch, max_wait=0.05, queue=64) as app:
            clients = [Client(app, query=b"output=labels") for _ in pictures]
            return await asyncio.gather(
                *(c.post(whole(p)) for c, (p, _) in zip(clients, pictures, strict=True))
            )

    answers = asyncio.run(story())
    assert [status for status, _, _ in answers] == [200] * len(pictures)
    assert [body for _, _, body in answers] == want
    assert max(gated.batches) == max_batch and sum(gated.batches) == len(pictures)


def test_one_client_does_not_wait_for_others(model, photo):
    """``max_wait`` is for those that are on their way."""

    async def story():
        async with running(model, max_batch=8, max_wait=10, timeout=5) as app:
            return await Client(app).post(whole(png(photo())))

    assert asyncio.run(story())[0] == 200


def test_a_full_queue(model, photo):
    gated = Gated(model)

    async def story():
        async with running(gated.model, queue=3) as app:
            service = app.state.service
            service._labeller.pace = 2.0  # seconds a picture
            gated.gate.clear()
            accepted = [asyncio.create_task(Client(app).post(whole(png(photo(seed=i))))) for i in range(3)]
            await until(lambda: service.held == 3)
            late = Client(app)
            refused = await late.post(whole(png(photo())))
            gated.gate.set()
            return (
                refused,
                late.taken,
                await asyncio.gather(*accepted),
                await Client(app).post(whole(png(photo()))),
            )

    (status, headers, body), taken, accepted, after = asyncio.run(story())
    assert status == 429 and headers["retry-after"] == "6" and b"3 pictures" in body
    assert taken == 0  # before a byte of it was read
    assert [one[0] for one in accepted] == [200] * 3 and after[0] == 200


def test_a_queue_that_fills_while_bodies_arrive(model, photo):
    """Two are let in while one place is free. Of them the first to be complete takes it."""
    gated, content = Gated(model), png(photo())

    async def story():
        async with running(gated.model, queue=2) as app:
            service = app.state.service
            gated.gate.clear()
            first = asyncio.create_task(Client(app).post(whole(content)))
            await until(lambda: service.held == 1)
            halves = [content[:100], content[100:], b""]
            others = [asyncio.create_task(Client(app).post(halves, pause=0.1)) for _ in range(2)]
            await until(lambda: service.arriving == 2)
            await until(lambda: service.arriving == 0)
            held = service.held
            gated.gate.set()
            return held, [one[0] for one in await asyncio.gather(first, *others)]

    held, (first, *others) = asyncio.run(story())
    assert held == 2 and first == 200 and sorted(others) == [200, 429]


def test_memory_is_bounded(model, photo, monkeypatch):
    """Of a crowd, few are read at once, few are kept, and fewer are decoded."""
    gated, decoded, most = Gated(model), [], {"arriving": 0, "held": 0}
    decode = bodies.decode
    monkeypatch.setattr(bodies, "decode", lambda *a: decoded.append(1) or decode(*a))

    async def story():
        async with running(gated.model, queue=8, workers=1) as app:
            service = app.state.service
            gated.gate.clear()
            crowd = [
                asyncio.create_task(Client(app).post(whole(png(photo())), pause=0.01)) for _ in range(40)
            ]
            for _ in range(60):
                await asyncio.sleep(0.005)
                for name in most:
                    most[name] = max(most[name], getattr(service, name))
            await until(lambda: sum(task.done() for task in crowd) == 32)
            count = len(decoded)
            gated.gate.set()
            return count, [one[0] for one in await asyncio.gather(*crowd)]

    count, statuses = asyncio.run(story())
    assert most == {"arriving": 8, "held": 8}
    assert count == 4  # 2 x (batch + workers)
    assert statuses.count(200) == 8 and statuses.count(429) == 32


def test_a_body_without_end(model):
    async def story():
        async with running(model, max_bytes=100_000) as app:
            raw = Client(app)
            answers = [await raw.post(iter(lambda: bytes(10_000), None))]
            head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
            form = Client(app, kind=b"multipart/form-data; boundary=x")

            def endless():
                yield head
                while True:
                    yield bytes(10_000)

            answers.append(await form.post(endless()))
            told = Client(app, headers=[(b"content-length", b"1000000")])
            answers.append(await told.post(whole(b"")))
            return answers, raw.taken, form.taken, told.taken, app.state.service.arriving

    answers, raw, form, told, arriving = asyncio.run(story())
    assert [status for status, _, _ in answers] == [413] * 3
    assert (raw, form, told, arriving) == (11, 18, 0, 0)


def test_a_slow_sender(model, photo):
    content = png(photo())

    async def story():
        async with running(model, read_timeout=0.3) as app:
            slow = await Client(app).post([content[i : i + 1] for i in range(len(content))], pause=0.02)
            return slow, app.state.service.arriving, await Client(app).post(whole(content))

    (status, headers, body), arriving, after = asyncio.run(story())
    assert status == 408 and b"0.3 seconds" in body and headers["connection"] == "close"
    assert arriving == 0 and after[0] == 200


def test_a_client_that_leaves_costs_no_network(model, photo):
    gated = Gated(model)

    async def story():
        async with running(gated.model, queue=8) as app:
            service = app.state.service
            gated.gate.clear()
            gated.inside.clear()
            stays = asyncio.create_task(Client(app).post(whole(png(photo(seed=1)))))
            await asyncio.to_thread(gated.inside.wait, LONG)
            leaver = Client(app)
            leaves = asyncio.create_task(leaver.post(whole(png(photo(seed=2)))))
            await until(lambda: len(service._labeller) == 1)
            leaver.left.set()
            nothing = await leaves
            gated.gate.set()
            stayed = await stays
            await until(lambda: not service.held)
            counted = service.metrics.requests.labels("/predict", "499")._value.get()
            return nothing, stayed, counted

    nothing, stayed, counted = asyncio.run(story())
    assert nothing is None and stayed[0] == 200 and counted == 1
    assert gated.batches == [1]  # of the one that stayed


def test_a_client_that_does_not_take_its_answer(model, photo):
    async def story():
        async with running(model, read_timeout=0.2) as app:

            async def receive(pieces=iter(whole(png(photo())))):  # noqa: B008
                piece = next(pieces, None)
                if piece is None:
                    await asyncio.sleep(LONG)
                return {"type": "http.request", "body": piece, "more_body": piece != b""}

            async def send(message):
                await asyncio.sleep(LONG)

            await asyncio.wait_for(app(Client(app).scope, receive, send), LONG / 2)
            return app.state.service.held

    assert asyncio.run(story()) == 0


def test_a_picture_whose_time_is_up(model, photo):
    gated = Gated(model)

    async def story():
        async with running(gated.model, timeout=0.3) as app:
            gated.gate.clear()
            gated.inside.clear()
            first = asyncio.create_task(Client(app).post(whole(png(photo(seed=1)))))
            await asyncio.to_thread(gated.inside.wait, LONG)
            second = await Client(app).post(whole(png(photo(seed=2))))
            gated.gate.set()
            third = await Client(app).post(whole(png(photo(seed=3))))
            return await first, second, third

    first, second, third = asyncio.run(story())
    assert first[0] == second[0] == 503 and b"0.3 seconds" in second[2] and int(second[1]["retry-after"]) >= 1
    assert third[0] == 200
    assert gated.batches == [1, 1]  # the second one was left out


def test_it_finishes_what_it_accepted(model, photo):
    gated = Gated(model)

    async def story():
        async with running(gated.model) as app:
            service = app.state.service
            gated.gate.clear()
            accepted = asyncio.create_task(Client(app).post(whole(png(photo()))))
            await until(lambda: service.held == 1)
            drained = asyncio.create_task(service.drained())
            await until(lambda: service.draining)
            late = await Client(app).post(whole(png(photo())))
            waited = not drained.done()
            gated.gate.set()
            await asyncio.wait_for(drained, LONG)
            return await accepted, late, waited

    accepted, late, waited = asyncio.run(story())
    assert accepted[0] == 200 and waited
    assert late[0] == 503 and b"shutting down" in late[2] and late[1]["connection"] == "close"


# The thread alone.


@pytest.fixture
def labeller(model):
    made = []

    def make(gated, **settings):
        made.append(Labeller(gated.model, Settings(**settings), coming=lambda: 1))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_batches_are_of_one_size_and_the_first_goes_first(model, labeller, photo):
    gated = Gated(model)
    one = labeller(gated, max_batch=3)
    gated.gate.clear()
    gated.inside.clear()
    begun = one.submit(photo(64, 64))
    assert gated.inside.wait(LONG)
    sizes = [(64, 96), (96, 64), (64, 96), (64, 96), (64, 96), (96, 64)]
    arrays = [photo(*size, seed=i) for i, size in enumerate(sizes)]
    waiting = [one.submit(array) for array in arrays]
    gated.gate.set()
    for future, array in zip(waiting, arrays, strict=True):
        assert np.array_equal(future.result(LONG).labels, model.predict(array).labels)
    assert begun.result(LONG).batch == 1
    assert [frames.shape[:3] for frames in gated.seen] == [(1, 64, 64), (3, 64, 96), (2, 96, 64), (1, 64, 96)]


def test_the_fault_of_one_is_not_that_of_its_batch(model, labeller, photo):
    gated, label = Gated(model), model.label
    bad = photo(seed=9)

    def fails(frames, **how):
        gated.inside.set()
        assert gated.gate.wait(LONG)
        if any(np.array_equal(frame, bad) for frame in frames):
            raise RuntimeError("CUDA out of memory")
        return label(frames, **how)

    gated.model.label = fails
    one = labeller(gated, max_batch=4)
    gated.gate.clear()
    first = one.submit(photo(64, 64))
    assert gated.inside.wait(LONG)
    waiting = [one.submit(photo(seed=seed)) for seed in (1, 9, 2)]
    gated.gate.set()
    first.result(LONG)
    for future, seed in ((waiting[0], 1), (waiting[2], 2)):
        assert np.array_equal(future.result(LONG).labels, model.predict(photo(seed=seed)).labels)
    with pytest.raises(ValueError, match="not enough memory"):
        waiting[1].result(LONG)
    assert np.array_equal(one.submit(photo()).result(LONG).labels, model.predict(photo()).labels)


def test_closing_cancels_what_waits(model, photo):
    gated = Gated(model)
    one = Labeller(gated.model, Settings())
    gated.gate.clear()
    begun = one.submit(photo())
    assert gated.inside.wait(LONG)
    waiting = one.submit(photo())
    closing = threading.Thread(target=one.close)
    closing.start()
    gated.gate.set()
    closing.join(LONG)
    assert not closing.is_alive() and not one.alive
    assert begun.result(0).batch == 1 and waiting.cancelled()
    with pytest.raises(RuntimeError, match="ended"):
        one.submit(photo())
