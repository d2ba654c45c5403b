"""The client against a real server; and against servers that misbehave in ways that a real one would not on demand."""

from __future__ import annotations

import asyncio
import importlib
import json
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

import numpy as np
import pytest
from rankhoist_client import AsyncClient, Client
from serving import CONTEXT, Served, hoisted_packed, hoisted_ranker, inputs, scores, serving

import rankhoist
from rankhoist import cli
from rankhoist.errors import CallError, DeadlineError, InputError, UnavailableError

CLIENT = Path(__file__).parents[1] / "client"
BOTH = pytest.mark.parametrize("protocol", ["binary", "json"])


@pytest.fixture(scope="module")
def hoisted() -> rankhoist.HoistedModel:
    return hoisted_ranker()


@pytest.fixture(scope="module")
def served(hoisted: rankhoist.HoistedModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("client")
    hoisted.save(folder / "ranker.rankhoist")
    hoisted_packed().save(folder / "packed.rankhoist")
    with serving(folder / "ranker.rankhoist", folder / "packed.rankhoist", "--max-candidates", 500) as served:
        yield served


@pytest.fixture
def url(served: Served) -> str:
    return f"http://127.0.0.1:{served.port}"


def sides(given) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    arrays = {name: x.numpy() for name, x in given.items()}
    return {n: arrays[n] for n in CONTEXT}, {n: x for n, x in arrays.items() if n not in CONTEXT}


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found.reshape(expected.shape), expected, rtol=1e-4, atol=1e-6)


# -- the real server


@BOTH
def test_scores_and_their_order(url: str, hoisted, protocol):
    given = inputs(1, 30)
    expected = scores(hoisted, given)
    with Client(url, protocol=protocol) as client:
        ranking = client.rank("ranker", *sides(given))
    assert list(ranking.outputs) == ["click", "buy"] and ranking.order.dtype == np.int64
    for name, values in expected.items():
        assert_close(ranking.outputs[name], values)
    assert ranking.order.tolist() == np.argsort(-expected["click"], kind="stable").tolist()


@BOTH
def test_top_k_gives_the_best_of_the_output_asked_for(url: str, hoisted, protocol):
    given = inputs(1, 30)
    expected = scores(hoisted, given)
    best = np.argsort(-expected["buy"].reshape(-1), kind="stable")[:4]
    with Client(url, protocol=protocol) as client:
        ranking = client.rank("ranker", *sides(given), top_k=4, output="buy")
    assert ranking.order.tolist() == best.tolist()
    for name, values in expected.items():
        assert_close(ranking.outputs[name], values[best])


@BOTH
def test_one_output_is_the_scores_and_packed_inputs_have_two_parts(url: str, protocol):
    context, candidates = np.array([[3.0]], np.float32), np.array([[0.5, 7.0], [0.1, 19.0]], np.float32)
    with Client(url, protocol=protocol) as client:
        ranking = client.rank("packed", {"X.context": context}, {"X.candidate": candidates})
        with pytest.raises(InputError, match="click, buy"):
            _ = client.rank("ranker", *sides(inputs(1, 2))).scores
    assert ranking.scores.reshape(-1).shape == (2,)


def test_several_requests_in_one_call(url: str, hoisted):
    given, offsets = inputs(3, 10), [0, 4, 4, 10]
    with Client(url) as client:
        ranking = client.rank("ranker", *sides(given), request_offsets=offsets)
        with pytest.raises(InputError, match="top_k is of one request"):
            client.rank("ranker", *sides(given), request_offsets=offsets, top_k=1)
    assert ranking.order is None
    for name, values in scores(hoisted, given, offsets).items():
        assert_close(ranking.outputs[name], values)


def test_json_takes_lists_and_rows(url: str, hoisted):
    context, candidates = sides(inputs(1, 5))
    rows = [{name: x[i].tolist() for name, x in candidates.items()} for i in range(5)]
    with Client(url, protocol="json") as client:
        ranking = client.rank("ranker", {name: x[0].tolist() for name, x in context.items()}, rows)
        with pytest.raises(InputError, match="protocol='binary'"):
            client.rank("ranker", context, candidates, request_offsets=[0, 5])
    assert_close(ranking.outputs["click"], scores(hoisted, inputs(1, 5))["click"])
    with Client(url) as client, pytest.raises(InputError, match="protocol='json'"):
        client.rank("ranker", context, rows)


def test_a_context_key_is_passed_on(url: str):
    context, candidates = sides(inputs(1, 5))
    other, _ = sides(inputs(1, 5, seed=1))
    with Client(url) as client:
        first = client.rank("ranker", context, candidates, context_key="u7")
        again = client.rank("ranker", context, candidates, context_key="u7")
        with pytest.raises(CallError) as refused:
            client.rank("ranker", other, candidates, context_key="u7")
        assert "rankhoist_state_cache_hits_total" in client.metrics()
    assert np.array_equal(first.outputs["click"], again.outputs["click"])
    assert (refused.value.status, refused.value.reason) == (409, "context_conflict")


@BOTH
def test_a_refusal_says_why(url: str, protocol):
    context, candidates = sides(inputs(1, 5))
    candidates["item"][3] = 10_000
    with Client(url, protocol=protocol) as client, pytest.raises(CallError) as refused:
        client.rank("ranker", context, candidates)
    error = refused.value
    assert (error.status, error.reason, error.input) == (400, "out_of_vocabulary", "item")
    assert str(error).startswith("POST /v") and "10000" in str(error)
    with Client(url, protocol=protocol) as client, pytest.raises(CallError, match="no model 'nobody'"):
        client.rank("nobody", context, candidates)


def test_what_arrays_cannot_say_is_refused_here(url: str):
    context, candidates = sides(inputs(1, 5))
    with Client(url) as client:
        with pytest.raises(InputError, match="in both context and candidates: user"):
            client.rank("ranker", context, {**candidates, "user": [1]})
        with pytest.raises(rankhoist.RankhoistError, match="cannot be sent"):
            client.rank("ranker", {**context, "user": [1j]}, candidates)
        with pytest.raises(CallError, match="'user' is BYTES, expected INT64"):
            client.rank("ranker", {**context, "user": ["a"]}, candidates)


def test_metadata_and_health(url: str):
    with Client(url) as client:
        assert client.metadata()["name"] == "rankhoist"
        about = {x["name"]: x for x in client.metadata("ranker")["inputs"]}
        assert about["item"]["parameters"] == {"side": "candidate", "maximum": 199}
        assert about["mood"]["parameters"] == {"side": "context"} and about["mood"]["shape"] == [-1, 3]
        packed = {x["name"]: x for x in client.metadata("packed")["inputs"]}
        assert packed["X.candidate"]["parameters"]["maximum"] == [None, 19]
        assert client.live() and client.ready() and client.ready("ranker") and not client.ready("nobody")


def test_the_asynchronous_client_is_the_same(url: str, hoisted):
    async def all_of_it() -> None:
        async with AsyncClient(url) as client:
            assert await client.live() and await client.ready() and not await client.ready("nobody")
            assert (await client.metadata("ranker"))["name"] == "ranker"
            assert "rankhoist_requests_total" in await client.metrics()
            seeds = range(12)
            calls = (client.rank("ranker", *sides(inputs(1, 9, seed)), top_k=9) for seed in seeds)
            for seed, ranking in zip(seeds, await asyncio.gather(*calls), strict=True):
                expected = scores(hoisted, inputs(1, 9, seed))["click"]
                assert_close(ranking.outputs["click"], np.sort(expected)[::-1])
            with pytest.raises(CallError, match="missing"):
                await client.rank("ranker", {}, {})
        async with AsyncClient(url, protocol="json") as client:
            ranking = await client.rank("ranker", *sides(inputs(1, 9)), deadline=30.0)
            assert_close(ranking.outputs["click"], scores(hoisted, inputs(1, 9))["click"])

    asyncio.run(all_of_it())


def test_threads_share_a_client(url: str, hoisted):
    wrong = []

    def some(client: Client, seed: int) -> None:
        ranking = client.rank("ranker", *sides(inputs(1, 20, seed)))
        if not np.allclose(
            ranking.outputs["click"], scores(hoisted, inputs(1, 20, seed))["click"], rtol=1e-4, atol=1e-6
        ):
            wrong.append(seed)

    with Client(url) as client:
        threads = [threading.Thread(target=some, args=(client, seed)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


# -- servers that misbehave


class Scripted(ThreadingHTTPServer):
    """Answers requests with (status, headers, body) in turn, the last one for ever; None closes the connection."""

    def __init__(self, *answers) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers, self.seen = list(answers), []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def __exit__(self, *error) -> None:
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    server: Scripted

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.seen.append((self.path, dict(self.headers), body))
        answer = self.server.answers.pop(0) if len(self.server.answers) > 1 else self.server.answers[0]
        if answer is None:
            self.close_connection = True
            return
        status, headers, content = answer
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args) -> None:
        pass


GOOD = (200, {}, b'{"scores": [1.0, 3.0], "order": [1, 0]}')
BUSY = (503, {"Retry-After": "0"}, b'{"error": "wait", "reason": "not_ready"}')
FULL = (429, {"Retry-After": "0"}, b'{"error": "full", "reason": "queue_full"}')


def rank(scripted: Scripted, **options):
    with Client(scripted.url, protocol="json", **options) as client:
        return client.rank("m", {}, {"x": [1, 2]})


def test_busy_servers_are_asked_again():
    with Scripted(BUSY, FULL, GOOD) as scripted:
        assert rank(scripted).scores.tolist() == [1.0, 3.0] and len(scripted.seen) == 3
        assert len({body for _, _, body in scripted.seen}) == 1


def test_but_only_so_often():
    with Scripted(FULL) as scripted:
        with pytest.raises(UnavailableError) as refused:
            rank(scripted, retries=1)
        assert len(scripted.seen) == 2 and (refused.value.status, refused.value.reason) == (429, "queue_full")


def test_and_not_past_the_deadline():
    with Scripted((503, {"Retry-After": "60"}, b"{}"), GOOD) as scripted:
        with pytest.raises(UnavailableError):
            rank(scripted, timeout=5.0)
        assert len(scripted.seen) == 1


def test_a_retry_date_counts_as_nothing_said():
    with Scripted((503, {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}, b"{}"), GOOD) as scripted:
        assert rank(scripted).order.tolist() == [1, 0]


@pytest.mark.parametrize("status", [400, 404, 409, 413, 500, 502])
def test_other_refusals_are_final(status: int):
    with Scripted((status, {}, b'{"error": "no"}'), GOOD) as scripted:
        with pytest.raises(CallError) as refused:
            rank(scripted)
        assert len(scripted.seen) == 1 and refused.value.status == status


def test_a_connection_that_breaks_off_is_not_tried_again():
    """The request may be what broke it."""
    with Scripted(None, GOOD) as scripted:
        with pytest.raises(UnavailableError) as broken:
            rank(scripted)
        assert len(scripted.seen) == 1 and broken.value.status is None


def test_the_server_s_deadline_is_a_deadline():
    with Scripted((503, {"Retry-After": "1"}, b'{"error": "late", "reason": "deadline"}'), GOOD) as scripted:
        with pytest.raises(DeadlineError, match="late"):
            rank(scripted)
        assert len(scripted.seen) == 1


def test_deadlines_reach_the_server_in_its_units():
    with Scripted(GOOD) as scripted:
        with Client(scripted.url, protocol="json") as client:
            client.rank("m", {}, {"x": [1]}, deadline=2.5)
        assert json.loads(scripted.seen[0][2])["timeout_ms"] == 2500
        with Client(scripted.url) as client, pytest.raises(CallError, match="no v2 response"):
            client.rank("m", {}, {"x": [1]}, deadline=2.5)
        assert b'"timeout":2500000' in scripted.seen[1][2]


@pytest.mark.parametrize("body", [b"", b"[]", b"<html>", b'{"scores": 1}', b'{"outputs": 1}', b"\xff"])
@BOTH
def test_answers_that_are_none(body: bytes, protocol):
    with (
        Scripted((200, {}, body)) as scripted,
        Client(scripted.url, protocol=protocol) as client,
        pytest.raises(CallError, match="the answer is no"),
    ):
        client.rank("m", {}, {"x": [1]})


def test_a_proxy_s_own_words_are_shown():
    with Scripted((502, {}, b"<html>bad gateway</html>")) as scripted, pytest.raises(CallError, match="bad gateway"):
        rank(scripted)


def test_no_answer_in_time():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with Client(url) as client, pytest.raises(DeadlineError):
            client.rank("m", {}, {"x": [1]}, deadline=0.2)


def test_no_server_is_asked_again_until_there_is_one():
    with socket.create_server(("127.0.0.1", 0)) as s:
        port = s.getsockname()[1]
    with Client(f"http://127.0.0.1:{port}", retries=1) as client:
        with pytest.raises(UnavailableError, match=r"POST /v2/models/m/infer: .*refused"):
            client.rank("m", {}, {"x": [1]})
        assert not client.live() and not client.ready()


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch):
    for name in ["rankhoist.client", *(name for name in sys.modules if name.startswith("rankhoist_client"))]:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "httpx", None)
    for name in ("rankhoist_client", "rankhoist.client"):
        with pytest.raises(Exception, match=r"needs httpx: pip install 'rankhoist\[client\]'") as raised:
            _ = importlib.import_module(name).Client
        assert type(raised.value).__name__ == "ExtraError"  # of the module as it is loaded anew


def test_the_client_is_without_the_server():
    """Nothing of the extra `serve` but what the extra `client` names too."""
    found = "print({'granian', 'prometheus_client', 'torch'} & sys.modules.keys())"
    code = f"import sys, rankhoist_client; rankhoist_client.Client; {found}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@BOTH
def test_a_machine_without_torch_asks_the_server(url: str, hoisted, protocol, tmp_path: Path):
    """As where `rankhoist-client` alone is installed: its files, its three dependencies, neither torch nor the rest."""
    project = tomllib.loads((CLIENT / "pyproject.toml").read_text())["project"]
    assert [re.match(r"\w+", line)[0] for line in project["dependencies"]] == ["httpx", "numpy", "orjson"]
    given = inputs(1, 30)
    context, candidates = sides(given)
    np.savez(tmp_path / "given.npz", **context, **candidates)
    code = f"""
import sys
sys.modules.update(torch=None, rankhoist=None)
sys.path.insert(0, {str(CLIENT / "src")!r})
import numpy as np, rankhoist_client
given = dict(np.load({str(tmp_path / "given.npz")!r}))
context = {{name: given.pop(name) for name in {list(context)!r}}}
with rankhoist_client.Client({url!r}, protocol={protocol!r}) as client:
    np.save({str(tmp_path / "found.npy")!r}, client.rank("ranker", context, given).outputs["click"])
    try:
        client.rank("nobody", context, given)
    except rankhoist_client.RankhoistError as error:
        print(type(error).__name__, error.status)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "CallError 404\n"
    assert_close(np.load(tmp_path / "found.npy"), scores(hoisted, given)["click"])


def test_both_packages_have_one_version():
    theirs = tomllib.loads((CLIENT / "pyproject.toml").read_text())["project"]
    ours = tomllib.loads((CLIENT.parent / "pyproject.toml").read_text())
    assert theirs["version"] == ours["project"]["version"] == rankhoist.__version__
    assert set(ours["project"]["optional-dependencies"]["client"]) < set(theirs["dependencies"])


# -- the command line


def request_file(path: Path, **more) -> Path:
    context, candidates = sides(inputs(1, 30))
    plain = ({name: x.tolist() for name, x in side.items()} for side in (context, candidates))
    path.write_text(json.dumps(dict(zip(("context", "candidates"), plain, strict=True)) | more))
    return path


def test_rank_from_a_file(url: str, hoisted, tmp_path: Path, capsys):
    file, out = request_file(tmp_path / "request.json"), tmp_path / "scores.json"
    assert cli.main(["client", "rank", "ranker", str(file), "--url", url, "--json", str(out)]) == 0
    found = json.loads(out.read_text())
    assert_close(np.array(found["outputs"]["click"]), scores(hoisted, inputs(1, 30))["click"])
    text = capsys.readouterr().out
    first = next(line for line in text.splitlines() if line.startswith("│"))
    assert "the best of 30" in text and first.split("│")[1].strip() == str(found["order"][0])
    assert first.split("│")[2].strip() == str(found["outputs"]["click"][found["order"][0]])


def test_flags_win_over_the_file(url: str, tmp_path: Path, capsys):
    file, out = request_file(tmp_path / "request.json", top_k=7), tmp_path / "scores.json"
    for flags, count in (([], 7), (["--top-k", "2"], 2)):
        assert cli.main(["client", "rank", "ranker", str(file), "--url", url, "--json", str(out), *flags]) == 0
        found = json.loads(out.read_text())
        assert len(found["order"]) == len(found["outputs"]["click"]) == count
        assert f"the best {count}," in capsys.readouterr().out


def test_metadata_and_health_commands(url: str, capsys):
    assert cli.main(["client", "metadata", "ranker", "--url", url]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "ranker"
    assert cli.main(["client", "health", "ranker", "--url", url]) == 0
    assert cli.main(["client", "health", "nobody", "--url", url]) == 1
    assert "nobody not ready" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "is no JSON"), ("[]", "is no request"), ('{"context": {}}', "is no request"),
     ('{"context": {}, "candidates": {}, "k": 1}', "its keys may be candidates, context"), (None, "No such file")],
)  # fmt: skip
def test_files_that_hold_no_request(tmp_path: Path, capsys, text: str | None, message: str):
    path = tmp_path / "x.json"
    if text is not None:
        path.write_text(text)
    assert cli.main(["client", "rank", "m", str(path)]) == 2
    assert message in capsys.readouterr().err


def test_a_refusal_is_one_line(url: str, tmp_path: Path, capsys):
    file = request_file(tmp_path / "request.json")
    assert cli.main(["client", "rank", "nobody", str(file), "--url", url]) == 2
    err = capsys.readouterr().err
    assert err.startswith("rankhoist: POST /v1/models/nobody/rank: 404") and len(err.splitlines()) == 1


def test_loadtest_of_the_real_server(url: str, tmp_path: Path, capsys):
    out, plot, file = tmp_path / "load.json", tmp_path / "load.svg", request_file(tmp_path / "requests.json")
    short = ["--seconds", "0.6", "--warm-up", "0.2", "--json", str(out)]
    for flags in (["--in-flight", "2", "--candidates", "20", "--plot", str(plot)],
                  ["--rate", "50", "--candidates", "20"],
                  ["--protocol", "json", "--requests", str(file)]):  # fmt: skip
        assert cli.main(["loadtest", url, "--model", "ranker", *short, *flags]) == 0
        result = json.loads(out.read_text())
        assert result["errors"] == {} and result["answered"] == result["requests"] > 5
        assert result["candidates"] == (30 if "--requests" in flags else 20)
        latency = result["latency_ms"]
        assert 0 < latency["p50"] <= latency["p99"] <= latency["p99.9"] <= latency["max"]
        assert result["generator_cores"] > 0
    assert plot.stat().st_size > 10_000 and "answers per second" in capsys.readouterr().out
    assert cli.main(["loadtest", url, "--model", "nobody", *short]) == 2
    assert "no model 'nobody'" in capsys.readouterr().err


def test_loadtest_counts_what_the_server_refuses(url: str, tmp_path: Path):
    """The first request is right and those after it are not: the load's errors are seen, by status."""
    good = json.loads(request_file(tmp_path / "x.json").read_text())
    bad = good | {"context": good["context"] | {"user": [10_000]}}
    file, out = tmp_path / "requests.json", tmp_path / "load.json"
    file.write_text(json.dumps([good, bad]))
    flags = ["--requests", str(file), "--seconds", "0.4", "--warm-up", "0", "--in-flight", "1", "--json", str(out)]
    assert cli.main(["loadtest", url, "--model", "ranker", *flags]) == 1
    result = json.loads(out.read_text())
    assert set(result["errors"]) == {"400"} and 0 <= result["answered"] - result["errors"]["400"] <= 1
