"""A real browser, for tests that look at pages."""

import shutil

import pytest

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--force-prefers-reduced-motion",
)  # fmt: skip
DRIVER = shutil.which("chromedriver")


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """Chromium without a window, a network or a past, which keeps a list of what it asks for."""
    if DRIVER is None or shutil.which("chromium") is None:
        pytest.skip("no chromium and chromium-driver are installed, in which pages are looked at")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    downloads, profile = tmp_path_factory.mktemp("downloads"), tmp_path_factory.mktemp("profile")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    driver.downloads = downloads
    yield driver
    driver.quit()


def resized(driver, width: int, height: int = 900) -> None:
    """Give the page a size: a phone's, a desktop's."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
