"""The page that renews itself: whom it answers, and what a browser makes of it."""

import http.client
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from vegrad.runs.log import RunLog
from vegrad.watching.follower import Follower
from vegrad.watching.page import content
from vegrad.watching.server import READERS, Server

from tests.watching.browser import BROWSER, Browser


@pytest.fixture
def server() -> Iterator[Server]:
    served = Server()
    served.show("first", "<p>first</p>")
    served.start()
    yield served
    served.stop()


def ask(
    server: Server, path: str, method: str = "GET", host: str | None = None
) -> tuple[http.client.HTTPResponse, str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    connection.putrequest(method, path, skip_host=True)
    connection.putheader("Host", f"127.0.0.1:{server.port}" if host is None else host)
    connection.endheaders()
    response = connection.getresponse()
    body = response.read().decode()
    connection.close()
    return response, body


def test_the_page(server: Server) -> None:
    response, body = ask(server, f"/{server.token}/")
    assert response.status == 200
    assert "<p>first</p>" in body
    policy = str(response.getheader("Content-Security-Policy"))
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    nonce = policy.partition("'nonce-")[2].partition("'")[0]
    assert f'<script nonce="{nonce}">' in body
    assert response.getheader("Referrer-Policy") == "no-referrer"
    assert response.getheader("Cache-Control") == "no-store"
    assert server.url == f"http://127.0.0.1:{server.port}/{server.token}/"
    assert "http" not in body.replace("http-equiv", "")


def test_who_has_no_token_is_refused(server: Server) -> None:
    mine = server.token
    for path in ("/", "/events", "//", "/x/", f"/{mine}", f"/{mine}/x", f"/x/{mine}/", f"{mine}/",
                 f"/{mine[:-1]}/", "/%C3%A9/", f"/{mine}/../", f"/{mine}/events/",
                 "http://127.0.0.1/"):  # fmt: skip
        response, body = ask(server, path)
        assert response.status == 403, path
        assert server.token not in body


def test_other_hosts_are_refused(server: Server) -> None:
    path = f"/{server.token}/"
    for host in ("evil.example", f"evil.example:{server.port}", "127.0.0.1", "", "localhost:1",
                 f"127.0.0.1:{server.port}.evil.example"):  # fmt: skip
        assert ask(server, path, host=host)[0].status == 403, host
    assert ask(server, path, host=f"localhost:{server.port}")[0].status == 200


def test_only_reading_is_answered(server: Server) -> None:
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "HEAD"):
        assert ask(server, f"/{server.token}/", method)[0].status == 501


def listen(server: Server) -> http.client.HTTPConnection:
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    connection.request("GET", f"/{server.token}/events")
    return connection


def test_news_are_sent(server: Server) -> None:
    connection = listen(server)
    response = connection.getresponse()
    assert response.getheader("Content-Type") == "text/event-stream; charset=utf-8"

    def news() -> dict[str, str]:
        line = response.readline()
        assert response.readline() == b"\n"
        found: dict[str, str] = json.loads(line.removeprefix(b"data: "))
        return found

    assert news() == {"title": "first", "body": "<p>first</p>"}
    server.show("second", "<p>\n\nsecond\r</p>")
    assert news() == {"title": "second", "body": "<p>\n\nsecond\r</p>"}
    connection.close()


def test_not_too_many_look(server: Server) -> None:
    connections = [listen(server) for _ in range(READERS)]
    for one in connections:
        assert one.getresponse().readline()
    response, _ = ask(server, f"/{server.token}/events")
    assert response.status == 503
    for one in connections:
        one.close()


def test_a_port_that_is_taken(server: Server) -> None:
    with pytest.raises(ValueError, match=f"port {server.port} is taken by another program"):
        Server(server.port)
    with pytest.raises(ValueError, match="port must be at most 65535, not 70000"):
        Server(70000)
    with pytest.raises(TypeError, match="port must be an integer"):
        Server("80")  # type: ignore[arg-type]


def test_only_this_machine_is_served(server: Server) -> None:
    assert server.server_address[0] == "127.0.0.1"


UNTIL = """new Promise(done => {{
  const look = () => {{
    if (document.getElementById("live")?.textContent.includes({words})) done({give});
  }};
  new MutationObserver(look).observe(document, {{subtree: true, childList: true}});
  look();
}})"""


@pytest.mark.skipif(not BROWSER, reason="there is no browser")
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (360, "dark")])
def test_a_browser_shows_the_training_as_it_goes_on(
    tmp_path: Path, width: int, scheme: str
) -> None:
    path = tmp_path / "<b>run.jsonl"
    follower = Follower(path)
    served = Server()
    follower.poll()
    served.show(*content(follower))
    served.start()
    with Browser(str(tmp_path / "browser")) as browser:
        browser._ask("Emulation.setDeviceMetricsOverride", width=width, height=900,
                     deviceScaleFactor=1, mobile=width < 500)  # fmt: skip
        feature = {"name": "prefers-color-scheme", "value": scheme}
        browser._ask("Emulation.setEmulatedMedia", features=[feature])
        browser.open(served.url)
        browser.run(UNTIL.format(words='"is not there yet"', give="1"))
        log = RunLog(path, modules=["in", "out"], about={"model": "<script>alert(1)</script>"})
        for step in range(30):
            log.step(step, float(np.exp(-step / 10)), 1.0)
            log.sizes(step, [-1.0, -2.0])
        follower.poll()
        served.show(*content(follower))
        found = browser.run(UNTIL.format(words='"Step 29: loss"', give="document.title"))
        assert found == "healthy, step 29: vegrad"
        for step in range(30, 40):
            log.step(step, float("nan"))
        follower.poll()
        served.show(*content(follower))
        assert browser.run(UNTIL.format(words='"not finite from step 30 on"', give="1")) == 1
        assert browser.run("document.querySelectorAll('svg.chart').length") >= 3
        assert browser.run("document.getElementById('state').textContent") == "live"
        assert browser.run("document.querySelectorAll('script').length") == 1
        assert browser.run("document.documentElement.scrollWidth") <= width
        ground = browser.run("getComputedStyle(document.body).backgroundColor")
        assert ground == ("rgb(243, 245, 247)" if scheme == "light" else "rgb(15, 20, 24)")
        loaded = browser.run("performance.getEntriesByType('resource').map(one => one.name)")
        assert loaded == [served.url + "events"] or loaded == []
        log.close()
    served.stop()
    follower.close()
