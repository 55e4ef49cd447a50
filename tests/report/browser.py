"""A real browser, headless and with a profile of its own, for the tests that look at a page in it."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
READY = "return [...document.querySelectorAll('.plot')].every(p => p.dataset.ready)"
"""Whether every figure of the page is drawn."""

PATIENCE = 300.0
"""Seconds after which a page hangs: on a busy machine some take a minute."""


@contextmanager
def session(profile: Path) -> Iterator[Any]:
    """Start Chromium, which keeps what its console says; skip the test where it is not installed."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("chromium or chromedriver is not installed (Debian: chromium, chromium-driver)")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    browser.set_script_timeout(PATIENCE)
    try:
        yield browser
    finally:
        browser.quit()


def until(browser: Any, script: str, seconds: float, late: str, meanwhile: str = "") -> Any:
    """Ask the page until its answer is true, and return it.

    Args:
        browser: A browser that shows a page.
        script: The question, in JavaScript.
        seconds: How long to wait.
        late: What to say where that is not enough.
        meanwhile: What to do on the page between two questions, in JavaScript.
    """
    deadline = time.monotonic() + seconds
    while not (found := browser.execute_script(script)):
        assert time.monotonic() < deadline, late
        if meanwhile:
            browser.execute_script(meanwhile)
        time.sleep(0.05)
    return found


def window(browser: Any, width: int, *, dark: bool | None = None) -> None:
    """Give the page a width, that of a phone where it is small, and a colour scheme where one is given."""
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    if dark is not None:
        scheme(browser, dark=dark)


def scheme(browser: Any, *, dark: bool) -> None:
    """Let the page be seen by somebody who prefers dark, or light."""
    wish = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [wish]})


def severe(browser: Any) -> list[Any]:
    """Return the errors that the console told of."""
    return [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
