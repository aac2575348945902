"""The judge against a real server that speaks the protocol, and does all that goes wrong with one."""

import json
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from rlhf_helpers.beyond import judging

RESPONSES = [{"prompt": f"question {i}", "ours": f"good {i}", "theirs": f"bad {i}"} for i in range(6)]
ASKED = judging.questions(RESPONSES, "ours", "theirs")


@pytest.fixture(autouse=True)
def no_back_off(monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)


@contextmanager
def server(reply):
    """`reply(n, body)` gives (status, text) of the n-th request, or None to cut the connection."""
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append((self.path, self.headers["Authorization"], body))
            if answer := reply(len(seen) - 1, body):
                self.send_response(answer[0])
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(answer[1].encode())

        def log_message(self, *args): ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        Thread(target=running.serve_forever, args=[0.02], daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}/v1", seen
        running.shutdown()


def says(text):
    return 200, json.dumps({"choices": [{"index": 0, "message": {"role": "assistant", "content": text}}]})


def knows(n, body):
    """Prefers what begins with "good"."""
    content = body["messages"][-1]["content"]
    return says("A" if content.split("[Answer A]\n")[1].startswith("good") else "B")


def ask(tmp_path, reply):
    """The outcome, and what was seen of the requests."""
    with server(reply) as (address, seen):
        verdicts = judging.ask(ASKED, tmp_path / "judged.jsonl", "a-judge", base_url=address)
    return judging.outcome(verdicts, len(RESPONSES)), seen


def test_a_judge_that_knows(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret-key")
    outcome, seen = ask(tmp_path, knows)
    assert outcome["win_rate"] == 1 and outcome["wins"] == 6 and outcome["always_first"] == 0.5
    assert outcome["interval"][0] > 0.5 and outcome["unclear"] == 0
    path, authorization, body = seen[0]
    assert path == "/v1/chat/completions" and authorization == "Bearer secret-key" and body["model"] == "a-judge"
    assert "secret-key" not in (tmp_path / "judged.jsonl").read_text()


@pytest.mark.parametrize("letter", ["A", "C", " [[b]]. "])
def test_a_judge_that_always_says_the_same_comes_out_at_half(tmp_path, letter):
    outcome, _ = ask(tmp_path, lambda n, body: says(letter))
    assert outcome["win_rate"] == 0.5 and outcome["ties"] == 6 and outcome["unclear"] == 0


def test_each_pair_is_asked_in_both_orders_and_equal_answers_not_at_all():
    asked = judging.questions([*RESPONSES, {"prompt": "x", "ours": "same", "theirs": "same "}], "ours", "theirs")
    assert Counter(q["ours_first"] for q in asked) == {True: 6, False: 6}
    content = {q["ours_first"]: q["messages"][1]["content"] for q in asked[:2]}
    assert content[True].index("good 0") < content[True].index("bad 0")
    assert content[False].index("good 0") > content[False].index("bad 0")


FAULTS = {
    "429": (429, "slow down"),
    "cut": None,
    "no JSON": (200, "<html>"),
    "no choices": (200, json.dumps({"choices": []})),
    "no content": says(None),
    "prose": says("I would rather not say"),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_fault_at_every_third_request_changes_nothing(tmp_path, fault):
    outcome, seen = ask(tmp_path, lambda n, body: fault if n % 3 == 1 else knows(n, body))
    assert outcome["win_rate"] == 1 and outcome["unclear"] == 0 and len(seen) > len(ASKED)


def test_a_judge_that_never_gives_a_letter_is_asked_again_and_is_unclear(tmp_path):
    outcome, seen = ask(tmp_path, lambda n, body: says("hm"))
    assert outcome["unclear"] == 12 and outcome["win_rate"] == 0.5 and len(seen) > 12


def test_nothing_is_paid_for_twice(tmp_path):
    with pytest.raises(RuntimeError, match="OPENAI_API_KEY"):
        ask(tmp_path, lambda n, body: knows(n, body) if n < 5 else (401, "{}"))
    with open(tmp_path / "judged.jsonl", "a") as file:
        file.write('\n{"key": "cut off in the mid')
    outcome, seen = ask(tmp_path, knows)
    assert len(seen) == 12 - 5 and outcome["win_rate"] == 1
    assert ask(tmp_path, knows) == (outcome, [])


def test_an_endpoint_that_is_not_there_is_named(tmp_path):
    with pytest.raises(RuntimeError, match="127.0.0.1:9.*OPENAI_BASE_URL"):
        judging.ask(ASKED, tmp_path / "judged.jsonl", "a-judge", base_url="http://127.0.0.1:9/v1", retries=0)


@pytest.mark.parametrize("wins, n, low, high", [(81, 263, 0.2553, 0.3662), (0, 20, 0, 0.1611)])
def test_wilsons_interval_is_that_of_the_literature(wins, n, low, high):
    """Newcombe (1998), table I."""
    assert judging.wilson(wins / n, n) == pytest.approx((low, high), abs=1e-4)
