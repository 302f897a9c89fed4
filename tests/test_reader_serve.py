"""Serving a reader study: over real connections, against crashes, a full disk and pages that are not ours."""

import http.client
import json
import resource
import shutil
import signal
import stat
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from reader_studies import (
    answer1,
    answer2,
    answers_to,
    build_study,
    free_port,
    start_server,
    write_knees,
)

from kecae_training.reader_study import formats
from kecae_training.reader_study import serve as serve_module
from kecae_training.reader_study.canonical import add_hash, canonical_json
from kecae_training.reader_study.command import main
from kecae_training.reader_study.serve import LARGEST, open_server


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    root = tmp_path_factory.mktemp("serve")
    with pytest.MonkeyPatch.context() as patch:
        return build_study(patch, write_knees(root / "knees"), root / "study", n=4, repeat=1)


@pytest.fixture
def client(built, tmp_path):
    """A running server and a way to ask it."""
    server = open_server(built.folder, tmp_path / "answers", 0, warn=lambda line: warned.append(line))
    warned: list[str] = []
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield Client(server.server_port, built.study, tmp_path / "answers", warned)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Client:
    def __init__(self, port, study, answers, warned=None):
        self.port, self.study, self.answers, self.warned = port, study, answers, warned
        self.first = [e["item"] for e in study["phase1"]]
        self.second = study["phase2"]["items"]

    def ask(self, method, path, body=None, headers=None):
        """(status, headers, bytes); body is JSON unless it is bytes."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        raw = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        sent = {"Content-Type": "application/json"} if body is not None else {}
        sent.update(headers or {})
        connection.request(method, path, raw, {k: v for k, v in sent.items() if v is not None})
        reply = connection.getresponse()
        found = reply.status, dict(reply.getheaders()), reply.read()
        connection.close()
        return found

    def json(self, method, path, body=None, headers=None):
        status, _, raw = self.ask(method, path, body, headers)
        return status, json.loads(raw)

    def state(self, reader="anna"):
        return self.json("GET", f"/api/state?reader={reader}")[1]

    def answer(self, phase, item, answer, reader="anna", study=None):
        body = {"study": study or self.study["id"], "reader": reader, "phase": phase, "item": item}
        return self.json("POST", "/api/answer", {**body, "answer": answer})

    def read_all(self, reader="anna", second=True):
        for item in self.first:
            assert self.answer(1, item, answer1(), reader)[0] == 200
        assert self.ask("GET", f"/phase2.js?reader={reader}")[0] == 200
        for item in self.second if second else []:
            assert self.answer(2, item, answer2(), reader)[0] == 200


def test_a_whole_study_from_first_answer_to_scoring(client, built):
    """What was answered is what is handed in, and what `score` reads; afterwards it stays as it is."""
    assert client.state() == {
        "study": built.study["id"],
        "phase1": {},
        "phase2": {},
        "started": None,
        "opened": False,
        "finished": False,
    }
    client.read_all()
    state = client.state()
    assert set(state["phase1"]) == set(client.first)
    assert state["phase2"] == dict.fromkeys(client.second, answer2())
    export = answers_to(built.study)
    reply = client.json("POST", "/api/finish", {"reader": "anna", "export": export})
    assert reply == (200, {"saved": len(client.first) + len(client.second), "sha256": export["sha256"]})
    path = client.answers / "anna" / "answers.json"
    assert formats.read_answers(path, built.key) == export
    assert not path.stat().st_mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH)
    again = client.json("POST", "/api/finish", {"reader": "anna", "export": export})
    assert again == reply  # the page may not have got the first reply
    other = answers_to(built.study, software="another")
    assert client.json("POST", "/api/finish", {"reader": "anna", "export": other})[0] == 409
    assert client.answer(2, client.second[0], answer2(realism=1))[0] == 409
    assert formats.read_answers(path, built.key) == export
    assert client.warned == []


def test_the_later_answer_counts_until_phase_two_is_shown(client):
    """A reader may change a grade; once the originals were seen, nobody may. Sending it again is no change."""
    item = client.first[0]
    client.answer(1, item, answer1("0"))
    assert client.answer(1, item, answer1("2", 5)) == (200, {"saved": 1})
    assert client.state()["phase1"] == {item: answer1("2", 5)}
    assert client.answer(1, item, answer1("2", 5)) == (200, {"saved": 1})
    status, reply = client.answer(2, client.second[0], answer2())
    assert status == 409
    assert "phase 1 is not complete: 1 of 5" in reply["error"]
    status, reply = client.json("GET", "/phase2.js?reader=anna")
    assert (status, reply["error"]) == (403, "phase 1 is not complete: 1 of 5")
    for other in client.first[1:]:
        client.answer(1, other, answer1())
    assert client.answer(1, item, answer1("0"))[0] == 200  # complete, but phase 2 was not shown yet
    assert client.ask("GET", "/phase2.js?reader=bob")[0] == 403
    assert client.ask("GET", "/phase2.js")[0] == 400
    assert client.ask("GET", "/phase2.js?reader=anna")[2].startswith(b"window.PHASE2 = ")
    status, reply = client.answer(1, item, answer1("2"))
    assert (status, reply["error"]) == (409, "phase 2 was shown; answers of phase 1 stay as they are")
    assert client.answer(1, item, answer1("0"))[0] == 200
    assert client.state()["opened"] is True


def test_readers_have_their_own_folder_whatever_the_case(client):
    """Anna and anna are one reader, on every file system; two at the same time do not lose an answer."""

    def read(reader):
        for item in client.first:
            assert client.answer(1, item, answer1("0" if reader == "Anna" else "2"), reader)[0] == 200

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(read, ["Anna", "bob-2"]))
    assert client.state("anna")["phase1"] == dict.fromkeys(client.first, answer1("0"))
    assert client.state("bob-2")["phase1"] == dict.fromkeys(client.first, answer1("2"))
    assert sorted(p.name for p in client.answers.iterdir() if p.is_dir()) == ["anna", "bob-2"]


def test_only_files_of_the_study_are_served(client, built):
    """Page and images yes; the key, answers, the folder's own listing and whatever else lies there, no."""
    (built.folder / "notes.txt").write_text("left here by somebody")
    client.answer(1, client.first[0], answer1())
    image = built.study["phase1"][0]["image"]
    status, headers, raw = client.ask("GET", f"/{image}")
    assert (status, headers["Content-Type"], raw) == (200, "image/png", (built.folder / image).read_bytes())
    for name in ("", "index.html", "app.css", "study.js", "study.json"):
        status, headers, raw = client.ask("GET", f"/{name}")
        assert status == 200
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert headers["Cache-Control"] == "no-store"
    for name in (
        "notes.txt",
        "images",
        "images/",
        "../study-key.json",
        "images/../../study-key.json",
        "%2e%2e/study-key.json",
        "/etc/passwd",
        str(built.key_file),
        "answers/anna/answers.jsonl",
        "images2/",
        "study.json/",
        "api/answer",
        "\\..\\study-key.json",
    ):
        status, _, raw = client.ask("GET", f"/{name}")
        assert (status, b"no file of this study" in raw) == (404, True), name


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 403),  # DNS rebinding
        ({"Host": "evil.example:8765"}, 403),
        ({"Host": "127.0.0.1.evil.example"}, 403),
        ({"Host": "localhost:9000"}, 200),  # a tunnel from another port
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Content-Type": "text/plain"}, 400),  # what a form of another page can send
        ({"Content-Type": "application/x-www-form-urlencoded"}, 400),
        ({"Content-Type": "application/json; charset=utf-8"}, 200),
    ],
)
def test_pages_elsewhere_cannot_answer(client, headers, status):
    """A web site that the reader has open must neither read nor write through the reader's browser."""
    body = {"study": client.study["id"], "reader": "anna", "phase": 1, "item": client.first[0]}
    assert client.json("POST", "/api/answer", {**body, "answer": answer1()}, headers)[0] == status
    assert bool(client.state()["phase1"]) == (status == 200)
    if "Host" in headers:
        assert client.ask("GET", "/api/state?reader=anna", headers=headers)[0] == status


def test_it_listens_on_this_computer_alone(built, tmp_path):
    """And two servers on one port is an error that says what to do."""
    with open_server(built.folder, tmp_path / "a", 0) as server:
        assert server.server_address[0] == "127.0.0.1"
        with pytest.raises(OSError, match="give another --port"):
            open_server(built.folder, tmp_path / "b", server.server_port)


def test_answers_that_are_none_are_refused_and_nothing_is_written(client):
    """Each with status 400, or 409 for another study, and the reason."""
    item, good = client.first[0], answer1()
    assert client.answer(1, item, good, study="0" * 64)[0] == 409
    for phase, name, answer in (
        (1, item, {**good, "grade": "1"}),
        (1, item, {**good, "confidence": 9}),
        (1, item, None),
        (2, item, answer2()),
        (3, item, good),
        (True, item, good),
        ("1", item, good),
        (1, "../../x", good),
        (1, ["x"], good),
    ):
        status, reply = client.answer(phase, name, answer)
        assert (status, bool(reply["error"])) == (400, True), (phase, name, answer)
    for reader in ("", "../x", "a" * 41, "ä", ".", "a/b", "a\x00", 5, None, ["a"]):
        assert client.answer(1, item, good, reader=reader)[0] == 400, reader
    for raw in (b"", b"{", b"[]", b"\xff\xfe", b'{"study":1.5}', b"[" * 50_000):
        assert client.json("POST", "/api/answer", raw)[0] == 400, raw[:10]
    assert client.json("POST", "/api/answer", b"x" * (LARGEST + 1))[0] == 400
    assert client.json("POST", "/api/answer", b"{}", {"Content-Length": "-1"})[0] == 400
    assert client.json("POST", "/api/else", {})[0] == 404
    assert client.ask("DELETE", "/api/answer")[0] == 501
    assert {p.name for p in client.answers.iterdir()} <= {".lock", ".study"}


def test_what_is_handed_in_must_be_what_was_saved(client, built):
    """An export that was edited, is another's, incomplete, or says other than the lines on disk is not kept."""
    client.read_all()
    good = answers_to(built.study)
    changed = {**good["phase1"], client.first[0]: answer1("0")}
    for export, status, reason in (
        ({**good, "software": "else"}, 400, "edited"),
        (answers_to(built.study, reader="bob"), 400, "of reader 'bob'"),
        (answers_to(built.study, study="0" * 64), 400, "foreign"),
        (answers_to(built.study, complete=False), 400, "incomplete"),
        (answers_to(built.study, phase1=changed), 409, "1 answers are not what was saved"),
        ("text", 400, "format"),
        (add_hash({}), 400, "format"),
    ):
        found, reply = client.json("POST", "/api/finish", {"reader": "anna", "export": export})
        assert (found, reason in reply["error"]) == (status, True), reply
    assert not (client.answers / "anna" / "answers.json").exists()
    long = answers_to(built.study, software="x" * (2 * LARGEST))  # a finished study is larger than an answer
    assert client.json("POST", "/api/finish", {"reader": "ANNA", "export": long})[0] == 200


def test_nothing_confirmed_is_lost_when_the_server_is_killed(built, tmp_path):
    """Killed while answers pour in: every confirmed one is there afterwards; what the kill tore off is dropped."""
    answers, confirmed, asked = tmp_path / "answers", {}, []
    port = free_port()
    process = start_server(built.folder, answers, port)
    client = Client(port, built.study, answers)

    def pour():
        for i in range(10_000):
            item = client.first[i % len(client.first)]
            answer = {**answer1(), "milliseconds": i}
            asked.append((item, answer))
            try:
                status, _ = client.answer(1, item, answer)
            except (OSError, http.client.HTTPException):
                return
            assert status == 200
            confirmed[item] = answer

    thread = threading.Thread(target=pour)
    thread.start()
    while len(asked) < 30:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    thread.join()
    process.stdout.close()
    with (answers / "anna" / "answers.jsonl").open("ab") as file:
        file.write(b'{"answer":{"at":"2026-01-31T12:0')  # as a power cut tears it
    process = start_server(built.folder, answers, port)
    try:
        client = Client(port, built.study, answers)
        saved = client.state()["phase1"]
        last, sent = asked[-1]  # it may have been saved, and its confirmation lost
        assert saved == confirmed or saved == {**confirmed, last: sent}
        assert client.answer(1, last, answer1())[0] == 200
        assert client.state()["phase1"] == {**confirmed, last: answer1()}
    finally:
        process.send_signal(signal.SIGINT)
        assert "the answers are in" in process.communicate(timeout=30)[0]
        assert process.returncode == 0
    lines = (answers / "anna" / "answers.jsonl").read_bytes().splitlines()
    assert all(json.loads(line) for line in lines)


def test_a_torn_or_broken_line_is_dropped_with_a_warning_and_the_rest_kept(client):
    """Said once, on the terminal of whoever runs the study; the reader's page shows the item as unanswered."""
    one, two, three = client.first[:3]
    for item in (one, two):
        client.answer(1, item, answer1())
    path = client.answers / "anna" / "answers.jsonl"
    raw = path.read_bytes()
    path.write_bytes(raw + b"\x00\x00\x00\n" + raw.splitlines()[0][:40])
    assert set(client.state()["phase1"]) == {one, two}
    client.state()
    assert len(client.warned) == 2
    assert "line 3: left out" in client.warned[1]
    assert "torn off by a crash" in client.warned[0]
    assert client.answer(1, three, answer1()) == (200, {"saved": 3})
    assert path.read_bytes().startswith(raw + b"\x00\x00\x00\n{")
    assert set(client.state()["phase1"]) == {one, two, three}


def test_a_full_disk_is_told_and_leaves_no_half_line(client, capfd):
    """507, so that the page keeps the answer; when there is room again, the same answer is taken."""
    one, two = client.first[:2]
    client.answer(1, one, answer1())
    path = client.answers / "anna" / "answers.jsonl"
    raw = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(raw) + 20, hard))  # the kernel writes 20 bytes of the line
    try:
        status, reply = client.answer(1, two, answer1())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (status, "the disk is full" in reply["error"]) == (507, True)
    assert path.read_bytes() == raw
    assert client.answer(1, two, answer1()) == (200, {"saved": 2})
    assert "POST /api/answer" in capfd.readouterr().err


def test_a_folder_that_was_changed_is_not_served(built, tmp_path):
    """An image replaced, phase 2 or the study edited, a file lost: found before a reader sees it."""

    def copy(name):
        return shutil.copytree(built.folder, tmp_path / name)

    image = copy("image") / built.study["phase1"][0]["image"]
    image.write_bytes(image.read_bytes()[:-1] + b"x")
    late = copy("late") / "phase2.js"
    late.write_text(late.read_text().replace('"after":"2"', '"after":"0"'))
    early = copy("early") / "study.json"
    early.write_text(early.read_text().replace("Reader study", "Another study"))
    (copy("lost") / built.study["phase1"][1]["image"]).unlink()
    (tmp_path / "empty").mkdir()
    for name, reason in (
        ("image", "changed after the study was built"),
        ("late", "changed after the study was built"),
        ("early", "edited"),
        ("lost", "missing"),
        ("empty", "no study.json"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=reason):
            open_server(tmp_path / name, tmp_path / "answers", 0)
    with pytest.raises(ValueError, match="inside the study's folder"):
        open_server(built.folder, built.folder / "answers", 0)
    assert not (built.folder / "answers").exists()


def test_a_second_server_on_the_same_answers_does_no_harm(client, built):
    """Nothing is kept in memory, so that neither overwrites what the other saved."""
    with open_server(built.folder, client.answers, 0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        other = Client(server.server_port, built.study, client.answers)
        with ThreadPoolExecutor(2) as pool:
            jobs = [
                pool.submit(who.answer, 1, item, answer1())
                for item in client.first
                for who in (client, other)
            ]
        assert {job.result()[0] for job in jobs} == {200}
        assert other.state() == client.state()
        assert len(client.state()["phase1"]) == len(client.first)
        server.shutdown()
        thread.join()
    lines = (client.answers / "anna" / "answers.jsonl").read_bytes().splitlines()
    assert len(lines) == len(client.first)  # the second, equal one was no change
    assert all(canonical_json(json.loads(line)) == line for line in lines)


def test_answers_to_another_study_are_kept_apart(client, monkeypatch, tmp_path):
    """A study that is built again under the same name must not go on with the answers to the old one."""
    client.answer(1, client.first[0], answer1())
    other = build_study(monkeypatch, write_knees(tmp_path / "knees"), tmp_path / "other", n=2, secret=None)
    with pytest.raises(ValueError, match="answers to another study"):
        open_server(other.folder, client.answers, 0)
    assert len(client.state()["phase1"]) == 1


def test_answers_that_cannot_be_written_are_an_error_at_once(built, tmp_path):
    """Before the reader starts, not after the first answer."""
    (tmp_path / "answers").write_text("a file where the folder should be")
    with pytest.raises(FileExistsError):
        open_server(built.folder, tmp_path / "answers", 0)


def test_the_command_keeps_answers_beside_the_study(built, tmp_path, monkeypatch, capsys):
    """Never in the folder that readers get; a folder that is no study is one line, as any mistake."""
    served = []
    monkeypatch.setattr(serve_module, "serve", lambda *given: served.append(given))
    main(["serve", str(built.folder)])
    main(["serve", str(built.folder), "--answers", str(tmp_path / "mine"), "--port", "0"])
    beside = built.folder.with_name("study-answers")
    assert served == [(built.folder, beside, 8765), (built.folder, tmp_path / "mine", 0)]
    monkeypatch.undo()
    with pytest.raises(SystemExit, match=r"reader-study serve: .*no study\.json"):
        main(["serve", str(tmp_path)])
