"""Who may ask for what: tried on the guard alone, which is plain ASGI."""

import asyncio

import pytest

from expunge.web.guard import Guard

TOKEN = "0123456789abcdef"


def ask(path="/", method="GET", token="", hosts=frozenset({"localhost", "127.0.0.1"}), **headers):
    """The status, headers and whether the page behind was asked."""
    sent, asked = [], []

    async def page(scope, receive, send):
        asked.append(scope["path"])
        await send({"type": "http.response.start", "status": 200, "headers": [(b"access-control-allow-origin", b"*")]})
        await send({"type": "http.response.body", "body": b"page"})

    async def send(message):
        sent.append(message)

    async def receive():
        return {"type": "http.request", "body": b""}

    given = {"host": "localhost:7860", **{k.replace("_", "-"): v for k, v in headers.items()}}
    where, _, query = path.partition("?")
    scope = {
        "type": "http",
        "method": method,
        "path": where,
        "query_string": query.encode(),
        "headers": [(k.encode(), v.encode()) for k, v in given.items() if v],
    }
    asyncio.run(Guard(page, token, hosts)(scope, receive, send))
    return sent[0]["status"], dict(sent[0]["headers"]), bool(asked)


@pytest.mark.parametrize(
    "path", ["/", "/config", "/theme.css", "/assets/index-D.js", "/gradio_api/queue/data", "/report/web/church-uce"]
)
def test_what_the_page_needs_is_let_through(path):
    assert ask(path)[::2] == (200, True)


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file/etc/passwd",
        "/file=/etc/passwd",
        "/gradio_api/proxy=https://example.org/",
        "/gradio_api/upload_progress",
        "/gradio_api/openapi.json",
        "/gradio_api/deep_link",
        "/gradio_api/runs",
        "/gradio_api/vibe-code",
        "/monitoring/summary",
        "/assets/../../etc/passwd",
        "/report/../key.safetensors",
        "/report//etc/passwd",
        "/docs",
        "/login",
        "/svelte/x.js",
    ],
)
def test_the_rest_of_gradio_s_routes_is_not_there(path):
    assert ask(path)[::2] == (404, False)


@pytest.mark.parametrize("path", ["/gradio_api/upload", "/gradio_api/run/predict", "/gradio_api/call/x", "/login", "/"])
def test_nothing_is_taken_but_the_page_s_own_events(path):
    assert ask(path, "POST", content_length="10")[::2] == (404, False)
    assert ask("/gradio_api/queue/join", "POST", content_length="10")[0] == 200
    assert ask("/", "DELETE")[0] == 404


def test_a_body_that_is_no_form_is_refused():
    assert ask("/gradio_api/queue/join", "POST")[0] == 411
    assert ask("/gradio_api/queue/join", "POST", content_length="-1")[0] == 411
    assert ask("/gradio_api/queue/join", "POST", content_length="1000001")[0] == 413


def test_another_site_s_page_may_not_act():
    posted = {"method": "POST", "content_length": "10"}
    assert ask("/gradio_api/queue/join", **posted, origin="https://evil.example")[0] == 403
    assert ask("/gradio_api/queue/join", **posted, origin="http://localhost:9999")[0] == 403
    assert ask("/gradio_api/queue/join", **posted, sec_fetch_site="cross-site")[0] == 403
    assert (
        ask("/gradio_api/queue/join", **posted, origin="http://localhost:7860", sec_fetch_site="same-origin")[0] == 200
    )


@pytest.mark.parametrize("host", ["evil.example", "evil.example:7860", "127.0.0.1.evil.example", "", "a b"])
def test_another_name_of_this_machine_is_refused(host):
    """Against a name that was made to lead here after its page was loaded (DNS rebinding)."""
    assert ask(host=host)[0] == 421
    assert ask(host="127.0.0.1:7860")[0] == 200


def test_a_token_is_asked_for_and_kept_in_a_cookie_only():
    assert ask(token=TOKEN)[0] == 401
    assert ask("/assets/x.js", token=TOKEN)[0] == 401
    assert ask("/?token=wrong", token=TOKEN)[0] == 401
    assert ask(token=TOKEN, cookie="expunge_token_7860=wrong")[0] == 401
    assert ask(token=TOKEN, cookie=f"other=1; expunge_token_7860={TOKEN}")[::2] == (200, True)
    assert ask(token=TOKEN, cookie=f"expunge_token_7861={TOKEN}")[0] == 401, "of another server on this machine"
    assert ask(token=TOKEN, host="localhost", cookie=f"expunge_token={TOKEN}")[0] == 200
    status, headers, asked = ask(f"/?token={TOKEN}", token=TOKEN)
    assert (status, asked, headers[b"location"]) == (303, False, b"./")  # so that it does not stay in the address
    assert headers[b"set-cookie"] == f"expunge_token_7860={TOKEN}; HttpOnly; SameSite=Lax; Path=/".encode()


def test_answers_say_that_nothing_is_fetched_elsewhere():
    headers = ask()[1]
    assert b"connect-src 'self'" in headers[b"content-security-policy"]
    assert b"//" not in headers[b"content-security-policy"]
    assert b"access-control-allow-origin" not in headers
    assert headers[b"x-content-type-options"] == b"nosniff"
    assert ask("/report/web/x")[1][b"content-security-policy"].startswith(b"sandbox allow-scripts")
