"""The server over real sockets: it draws, refuses, and never stays occupied."""

import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from varlit.errors import UserError
from varlit.generation.sampler import ImageSeeds, Sampler, SamplingSettings
from varlit.page.drawing import MAX_WAITING
from varlit.page.handler import STATIC
from varlit.page.server import PageServer
from varlit.viz.grids import to_uint8


def drawn_by_hand(studio, seeds, label, **settings):
    labels = torch.full((len(seeds),), label)
    sampler = studio.sampler
    return sampler.draw(labels, SamplingSettings(**settings), ImageSeeds(seeds), with_frames=True)


def test_pictures_arrive_scale_by_scale_and_are_those_of_the_sampler(client, studio, pixels):
    start, *frames, done = client.draw()
    expected = drawn_by_hand(studio, [5, 6], 1, cfg_scale=2.0, top_k=0, top_p=0.9)
    assert [start["event"], done["event"]] == ["start", "done"]
    assert done["seconds"] > 0
    assert [frame["name"] for frame in frames] == ["01x01", "02x02", "04x04", "08x08"]
    assert [frame["frame"] for frame in frames] == [0, 1, 2, 3]
    for frame, images in zip(frames, expected.frames, strict=True):
        found = np.stack([pixels(text) for text in frame["images"]])
        assert (found == to_uint8(images)).all()


def test_every_file_of_the_page_is_served_and_nothing_else(client):
    for path, (_, kind) in STATIC.items():
        response = client.send("GET", path)
        assert (response.status, response.getheader("Content-Type")) == (200, kind)
        assert "default-src 'none'" in response.getheader("Content-Security-Policy")
        assert len(response.read()) > 100
    for path in (
        "/page.py",
        "/../server.py",
        "/%2e%2e/server.py",
        "//etc/passwd",
        "/static/",
        "/x",
    ):
        assert client.send("GET", path).status == 404
    assert client.send("GET", "/?a=1").status == 200
    for method in ("PUT", "DELETE", "HEAD", "BREW"):
        assert client.send(method, "/").status == 501


def test_only_names_of_this_machine_are_answered(client, plain):
    for path in ("/", "/api/model"):
        assert client.send("GET", path, Host="evil.org").status == 403
    status, said = client.refused(plain, Host=f"evil.org:{client.port}")
    assert (status, "localhost only" in said) == (403, True)
    assert client.send("GET", "/", Host="localhost:1").status == 200


def test_another_host_is_answered_where_it_was_asked_for(serve, studio):
    server = serve(studio, "0.0.0.0")
    assert not server.is_local
    name = socket.gethostname()
    # The names of others would let their pages in (DNS rebinding); what is no name is no fault.
    answers = {"192.168.1.7": 200, name: 200, "evil.org": 403, "[::1": 403, "a]b[": 403}
    for host, status in answers.items():
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(f"GET /api/model HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
            assert connection.recv(40).startswith(b"HTTP/1.0 %d" % status), host


def test_another_site_cannot_draw(client, plain):
    assert client.refused(plain, Origin="http://evil.org")[0] == 403
    assert client.refused(plain, Content_Type="text/plain")[0] == 415
    own = f"http://127.0.0.1:{client.port}"
    assert client.send("POST", "/api/draw", plain, Origin=own).status == 200


def test_mistakes_are_one_plain_sentence(client, plain, edit):
    assert client.refused(b"{")[0] == 400
    assert client.refused(plain | {"label": 3}) == (
        400,
        "class must be a whole number in 0..2; got 3",
    )
    assert client.refused(plain | {"edit": edit | {"image": "x"}})[0] == 400
    assert client.refused(bytes(5 * 2**20))[0] == 413
    assert client.send("POST", "/elsewhere", plain).status == 404


def test_what_is_no_request_at_all_is_answered_calmly(client, capsys):
    for line in (b"\x16\x03\x01\x02\x00\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", client.port)) as connection:
            connection.sendall(line)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(4096):
                pass
    assert client.send("GET", "/").status == 200
    assert "Traceback" not in capsys.readouterr().err


def test_a_fault_of_ours_is_told_without_its_traceback(client, plain, monkeypatch, capsys):
    def broken(*args, **settings):
        raise RuntimeError("secret /home/path")
        yield

    monkeypatch.setattr(Sampler, "steps", broken)
    *_, last = client.draw()
    assert last["event"] == "error"
    assert "terminal" in last["message"]
    assert "secret" not in last["message"]
    assert "secret" in capsys.readouterr().err
    monkeypatch.undo()
    assert client.draw()[-1]["event"] == "done"


def test_a_full_device_asks_for_fewer_variants(client, monkeypatch):
    def full(*args, **settings):
        raise torch.OutOfMemoryError("CUDA out of memory. " + "x" * 900)
        yield

    monkeypatch.setattr(Sampler, "steps", full)
    assert client.draw()[-1]["message"].endswith("ask for fewer variants.")


def test_stopping_half_way_frees_the_model(client, plain, gate, studio, wait_until):
    response = client.send("POST", "/api/draw", plain)
    assert b"start" in response.readline()
    gate.open(2)
    assert b"01x01" in response.readline()
    wait_until(lambda: gate.steps_done == 2)
    response.close()
    gate.open(1)
    wait_until(lambda: studio.queue.is_free)
    assert gate.steps_done == 3, "it drew on for nobody"
    gate.open()
    assert client.draw()[-1]["event"] == "done"


def test_two_at_once_take_turns_and_get_what_each_asked_for(client):
    alone = [client.draw(seed=seed)[-2] for seed in (1, 2)]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda seed: client.draw(seed=seed)[-2], (1, 2)))
    assert together == alone
    assert alone[0]["images"] != alone[1]["images"]


def test_too_many_are_asked_to_come_again(client, plain, gate, studio, wait_until):
    first = client.send("POST", "/api/draw", plain)
    waiting = [client.send("POST", "/api/draw", plain) for _ in range(MAX_WAITING)]
    assert [b"waiting" in response.readline() for response in waiting] == [True] * MAX_WAITING
    assert client.refused(plain)[0] == 429
    # Who leaves while waiting makes room at once, before the first is done.
    waiting.pop().close()
    wait_until(lambda: studio.queue.num_inside == MAX_WAITING)
    gate.open()
    for response in (first, *waiting):
        assert b'"done"' in response.read().splitlines()[-1]
    wait_until(lambda: studio.queue.is_free)


def test_an_edit_leaves_the_rest_untouched_at_every_scale(client, edit, pixels):
    given = pixels(edit["image"])
    frames = client.draw(edit=edit)[1:-1]
    edge = 16 + 2  # the feather is half a cell of 4 px
    for frame in frames:
        for text in frame["images"]:
            assert (pixels(text)[:, edge:] == given[:, edge:]).all()
            assert (pixels(text)[:, :16] != given[:, :16]).any()
    loose = client.draw(edit=edit | {"keep_rest": False})[-2]
    assert (pixels(loose["images"][0])[:, edge:] != given[:, edge:]).any()


def test_a_drawing_without_class_is_drawn(client, studio, pixels):
    found = client.draw(label=None, num_variants=1)[-2]["images"][0]
    expected = drawn_by_hand(studio, [5], 3, cfg_scale=2.0, top_k=0, top_p=0.9)
    assert (pixels(found) == to_uint8(expected.images)[0]).all()


def test_the_card_says_what_the_controls_need(client):
    card = json.loads(client.send("GET", "/api/model").read())
    assert card["class_titles"] == ["ant", "bee", "cow's"]
    assert (card["side_px"], card["num_classes"], card["max_variants"]) == (32, 3, 16)
    assert card["frames"] == ["01x01", "02x02", "04x04", "08x08"]
    assert card["top_k"] == 24


@pytest.mark.slow  # timm is imported
def test_a_thousand_classes_without_names_are_those_of_imagenet(make_studio):
    titles = make_studio(1000, ()).card["class_titles"]
    assert len(titles) == 1000
    assert titles[207] == "golden retriever"
    assert make_studio(999, ()).card["class_titles"] == []


def test_stopping_the_server_ends_drawings_and_every_thread(studio, plain, gate, wait_until):
    before = set(threading.enumerate())
    server = PageServer(studio)
    serving = threading.Thread(target=server.serve_forever, args=(0.02,))
    serving.start()
    with (
        socket.create_connection(("127.0.0.1", server.port)) as silent,
        ThreadPoolExecutor(1) as pool,
    ):
        silent.sendall(b"GET / HT")
        body = str(plain).replace("'", '"').encode()
        drawing = socket.create_connection(("127.0.0.1", server.port))
        drawing.sendall(
            b"POST /api/draw HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        gate.open(1)
        wait_until(lambda: gate.steps_done == 1)
        server.shutdown()
        stopping = pool.submit(server.stop)
        gate.open(1)
        stopping.result(timeout=20)
        drawing.close()
    serving.join()
    assert set(threading.enumerate()) <= before
    assert studio.queue.is_free


def test_ctrl_c_while_the_serving_thread_starts_serves_nobody(studio, monkeypatch):
    begun = []

    class Interrupted(threading.Thread):
        def start(self):
            begun.append(self)
            raise KeyboardInterrupt

    server = PageServer(studio)
    with monkeypatch.context() as patch:
        patch.setattr(threading, "Thread", Interrupted)
        server.run()
    begun[0].run()  # it may reach its turn only now, when the socket is closed
    assert server.fileno() == -1


def test_a_port_that_is_taken_names_another(studio, serve):
    port = serve(studio).port
    with pytest.raises(UserError, match=f"--port {port + 1}, or --port 0"):
        PageServer(studio, port=port)
    with pytest.raises(UserError, match=r"0\.\.65535"):
        PageServer(studio, port=70_000)
    with pytest.raises(UserError, match="cannot listen on no-such-host"):
        PageServer(studio, "no-such-host.invalid")


def test_more_connections_than_threads_are_turned_away(client, monkeypatch):
    monkeypatch.setattr("varlit.page.server.MAX_CONNECTIONS", 3)
    idle = [socket.create_connection(("127.0.0.1", client.port)) for _ in range(3)]
    with pytest.raises(OSError):  # noqa: PT011
        client.send("GET", "/")
    for connection in idle:
        connection.close()
