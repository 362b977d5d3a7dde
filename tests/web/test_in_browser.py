"""The whole way in a real Chromium: from a concept to a report, with a second tab, a reload and a killed server on the way."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from browsers import resized
from expunge.web.processes import Runner
from expunge.web.served import Served

pytest.importorskip("gradio")
SOURCES = str(Path(__file__).parents[2] / "src")
SERVER = """
import socket, sys

def local(place):
    return isinstance(place, (str, bytes)) or place[0] in ("127.0.0.1", "::1", "localhost")

def told(event, about):
    if event == "socket.connect" and not local(about[1]) or event == "socket.getaddrinfo" and about[0] not in (
        None, "127.0.0.1", "localhost", b"127.0.0.1"
    ):
        with open(sys.argv[1], "a") as file:
            file.write(f"{event} {about}\\n")

sys.addaudithook(told)
from expunge.cli import main
sys.exit(main(sys.argv[2:]))
"""
"""Serves, and writes down whatever it asks of other machines."""
PATIENCE = 900
"""Seconds that something may take on a busy machine; nothing waits for them to pass."""


KILLED = ("ERR_CONNECTION_REFUSED", "ERR_INCOMPLETE", "AbortError", "Connection errored out")
"""What a page says of a server that was killed, of which how much depends on what it was asking."""


class Site:
    """A server, which may be killed and begun again."""

    def __init__(self, place):
        self.served, self.asked = Served.opened(place / "runs"), place / "asked"
        self.runner, self.port = Runner(served=self.served), "0"
        self.begin()

    def begin(self):
        words = ["serve", str(self.served.root), "--port", self.port, "--workers", "1"]
        command = [sys.executable, "-c", SERVER, str(self.asked), *words]
        environment = {**os.environ, "PYTHONPATH": SOURCES}
        self.process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        self.url = self.process.stdout.readline().split()[-1]
        self.port = self.url.rstrip("/").rpartition(":")[2]

    def held(self, name):
        """Stop the run's process in the middle of its first job, so that the page has time to look however slow it is."""
        progress = self.served.root / name / "progress.json"
        end = time.monotonic() + PATIENCE
        while not (progress.is_file() and json.loads(progress.read_text())["running"]):
            assert time.monotonic() < end, self.served.run(name)
            time.sleep(0.05)
        os.killpg(self.runner._told()["pid"], signal.SIGSTOP)

    def let_go(self):
        os.killpg(self.runner._told()["pid"], signal.SIGCONT)

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    made = Site(tmp_path_factory.mktemp("site"))
    yield made
    made.kill()
    name = made.runner.running()
    if name is not None:
        made.let_go()
        made.runner.cancel(name)


@pytest.fixture
def page(browser, site):
    """The page on a desktop."""
    yield from looked_at(browser, site, 1280)


@pytest.fixture
def phone(browser, finished):
    """The page on a phone, of runs that are finished."""
    made, before = Site(finished.served.root.parent), set(finished.served.runs())
    yield from looked_at(browser, made, 390)
    made.kill()
    for name in set(finished.served.runs()) - before:  # other tests look at the same runs
        shutil.rmtree(finished.served.run(name))


def looked_at(browser, site, width):
    """A site's page; whatever it says in its console is an error, and so is a request to any other place."""
    resized(browser, width)
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    browser.get(site.url)
    served = site.process
    yield browser
    said = [e["message"] for e in browser.get_log("browser") if e["level"] == "SEVERE"]
    expected = () if site.process is served else KILLED
    assert [line for line in said if not any(words in line for words in expected)] == []
    events = [json.loads(e["message"])["message"] for e in browser.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert len(asked) > 20
    assert [url for url in asked if not url.startswith((site.url, "data:", f"blob:{site.url}"))] == []
    assert not site.asked.exists(), site.asked.read_text()


def until(driver, script, seconds=PATIENCE):
    """Wait until the page says so, and give what it says."""
    end = time.monotonic() + seconds
    while True:
        found = driver.execute_script(f"return {script}")
        if found:
            return found
        assert time.monotonic() < end, (script, driver.execute_script("return document.body.innerText"))
        time.sleep(0.2)


def state(driver, *wanted):
    """Wait until the run that is shown is in one of these states."""
    names = ", ".join(f".xp-{name}" for name in wanted)
    return until(driver, f"document.querySelector('{names}')?.dataset.run")


def click(driver, selector):
    until(driver, f"document.querySelector('{selector}')?.checkVisibility()")
    driver.execute_script("arguments[0].click()", driver.find_element(By.CSS_SELECTOR, selector))


def tab(driver, name):
    script = (
        "[...document.querySelectorAll('button[role=tab]')].find(tab => tab.innerText.trim() == arguments[0]).click()"
    )
    driver.execute_script(script, name)


def unfold(driver, title):
    script = "return [...document.querySelectorAll('button')].find(b => b.innerText.trim().startsWith(arguments[0]))"
    driver.execute_script("arguments[0].click()", driver.execute_script(script, title))


def choose(driver, label, value):
    """Choose in a list by typing."""
    until(driver, f"document.querySelector('input[aria-label=\"{label}\"]')?.checkVisibility()")
    field = driver.find_element(By.CSS_SELECTOR, f'input[aria-label="{label}"]')
    field.click()
    field.send_keys(Keys.CONTROL, "a")
    field.send_keys(value)
    time.sleep(0.5)
    field.send_keys(Keys.ENTER)


def fits(driver):
    """Whether nothing sticks out of the page's sides."""
    wide, window = driver.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
    return wide <= window


def test_the_whole_way_from_a_concept_to_a_report(page, site):
    until(page, "document.querySelector('#start')")
    assert fits(page)
    choose(page, "Concept", "bomb")
    until(page, "!document.body.innerText.includes('ferris wheel')")  # what is kept follows the concept
    click(page, "#start")
    name = "web/bomb-uce"
    site.held(name)
    assert state(page, "running") == name
    until(page, "location.search == '?run=web%2Fbomb-uce'")
    until(page, "document.querySelector('.xp-line').innerText.match(/^0 of 5 jobs, .* so far, about .* left$/)")

    first = page.current_window_handle
    page.switch_to.new_window("tab")
    page.get(site.url)
    assert state(page, "running") == name  # a second tab finds what is going on
    page.close()
    page.switch_to.window(first)
    page.refresh()
    assert state(page, "running") == name  # so does a reload

    site.kill()
    assert site.runner.running() == name  # the run outlives its server
    site.let_go()
    site.begin()
    page.get(site.url + "?run=web/bomb-uce")
    assert state(page, "finished") == name

    covered = until(page, "document.querySelectorAll('#images .xp-covered').length")
    assert covered == 8  # the bomb's, before and after; what is kept is shown
    image = page.find_element(By.CSS_SELECTOR, "#images .xp-covered img")
    assert image.value_of_css_property("filter").startswith("blur")
    page.find_element(By.CSS_SELECTOR, "#images .xp-covered input").click()
    assert image.value_of_css_property("filter") == "none"
    time.sleep(4)  # a look at the files later, it is still uncovered
    assert page.find_element(By.CSS_SELECTOR, "#images .xp-covered img").value_of_css_property("filter") == "none"

    unfold(page, "Attack it")
    choose(page, "Attack", "rounding")
    until(page, "[...document.querySelectorAll('button')].some(b => b.innerText.startsWith('Settings of rounding'))")
    click(page, "#attack")
    until(page, "document.querySelector('#images').innerText.includes('attack: rounding')")
    table = until(page, "document.querySelector('#numbers table')?.innerText")
    assert "esr@1" in table
    resized(page, 390)
    assert fits(page)

    page.get(page.find_element(By.CSS_SELECTOR, "#numbers a").get_attribute("href"))
    assert "bomb-uce" in page.title
    assert page.execute_script("return [window.origin, document.querySelectorAll('.frame').length > 0]") == [
        "null",
        True,
    ]


def test_a_run_is_cancelled_and_bad_input_is_a_line(page, site):
    until(page, "document.querySelector('#start')")
    choose(page, "Concept", "fish")
    unfold(page, "Settings of uce")
    field = until(
        page,
        "[...document.querySelectorAll('label')].find(l => l.innerText.startsWith('lamb'))?.querySelector('input, textarea')",
    )
    field.send_keys("much")
    click(page, "#start")
    assert until(page, "document.querySelector('.xp-bad')?.innerText") == "uce's lamb is 'much': expected a number"
    choose(page, "Method", "kpop")
    until(page, "[...document.querySelectorAll('button')].some(b => b.innerText.startsWith('Settings of kpop'))")
    click(page, "#start")
    site.held("web/fish-kpop")
    assert state(page, "running") == "web/fish-kpop"
    site.let_go()
    click(page, "#cancel")
    assert state(page, "stopped") == "web/fish-kpop"
    assert site.runner.running() is None
    assert page.execute_script("return document.querySelector('#again').checkVisibility()")
    tab(page, "Runs")
    until(page, "[...document.querySelectorAll('.xp-card')].some(card => card.innerText.includes('fish-kpop'))")
    page.get(site.url + "?run=../store")
    assert "expected web/NAME or bench/NAME" in until(page, "document.querySelector('.xp-bad')?.innerText")


def test_finished_runs_are_looked_at_and_compared_on_a_phone(phone, finished):
    """Every tab fits; a key's images stand beside those before and after; two edits change with the slider."""
    until(phone, "document.querySelector('#start')")
    assert fits(phone)
    tab(phone, "Runs")
    assert until(phone, "document.querySelectorAll('.xp-card').length") == 3
    assert fits(phone)

    tab(phone, "Compare")
    choose(phone, "One run", finished.uce)
    choose(phone, "Another of the same concept", finished.kpop)
    click(phone, "#compare-start")  # its images were made already
    shown = "[...document.querySelectorAll('#pairs img')].map(image => image.src).join()"
    whole = until(phone, shown)
    assert fits(phone)
    slider = phone.find_element(By.CSS_SELECTOR, "#strength input[type=range]")
    slider.send_keys(Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    until(phone, f"{shown} != {json.dumps(whole)} && {shown}")
    assert phone.find_element(By.CSS_SELECTOR, "#strength input[type=number]").get_property("value") == "0.5"
    assert fits(phone)

    phone.get(f"{phone.current_url.partition('?')[0]}?run={finished.kpop}")
    assert state(phone, "finished") == finished.kpop
    until(phone, "document.querySelector('#images').innerText.toLowerCase().includes('recovered')")
    assert fits(phone)


def test_no_file_is_had_from_the_server(site):
    key = site.served.root / "key.safetensors"
    key.write_bytes(b"secret")
    for path in (
        f"gradio_api/file={key}",
        "gradio_api/file=key.safetensors",
        "report/key.safetensors",
        "key.safetensors",
    ):
        with pytest.raises(urllib.error.HTTPError) as told:
            urllib.request.urlopen(site.url + path)
        assert told.value.code in (403, 404)
        assert b"secret" not in told.value.read()


def test_ctrl_c_ends_the_server_and_nothing_else(site):
    site.process.send_signal(signal.SIGINT)
    assert site.process.wait(120) in (0, 130)  # uvicorn may have ended well before it hands the signal on
    site.process.stdout.close()
    site.begin()
