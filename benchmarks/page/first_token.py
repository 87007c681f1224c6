"""The delay of the page: from a token of the mock engine to its text in a real Chromium, in milliseconds.

``python -m benchmarks.page.first_token --turns 30``. The engine writes the time of each token into it. The page's
clock and the engine's are compared by the wall clock of this machine.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path
from statistics import median

from playwright.sync_api import Page, expect, sync_playwright

from tests.assistant.running import whole_service
from tests.gateway.running.test_browser import FLAGS, NAMES

WATCH = """() => new Promise((resolve) => {
  const watcher = new MutationObserver(() => {
    const seen = document.querySelector("article.live .live-text")?.textContent.match(/t=(\\d{16})/);
    if (seen) {
      watcher.disconnect();
      resolve([Number(seen[1]), performance.timeOrigin + performance.now()]);
    }
  });
  watcher.observe(document.getElementById("messages"), {subtree: true, childList: true, characterData: true});
  const field = document.getElementById("message");
  field.value = "fake: tokens=3 itl_ms=5 ttft_ms=50 stamp=1";
  field.dispatchEvent(new Event("input"));
  document.getElementById("composer").requestSubmit();
})"""


def turn(page: Page) -> float:
    """Return the milliseconds from the engine's first token of a new turn to its text in the page."""
    page.click("#new-chat")
    stamp_us, seen_ms = page.evaluate(WATCH)
    # The engine's clock is monotonic, the page's is the wall clock.
    shift_ms = (time.time_ns() - time.monotonic_ns()) / 1e6
    expect(page.locator("#send")).to_be_visible()
    return float(seen_ms - (stamp_us / 1000 + shift_ms))


def main() -> None:
    """Print the distribution of the delays."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=30)
    args = parser.parse_args()
    browser_path = next(path for name in NAMES if (path := shutil.which(name)))
    folder = Path(tempfile.mkdtemp(prefix="page-"))
    with whole_service(folder) as (service, _), sync_playwright() as playwright:
        flags = [flag for flag in FLAGS if flag != "--headless"]
        browser = playwright.chromium.launch(executable_path=browser_path, args=flags)
        page = browser.new_page()
        page.goto(service.url)
        page.fill("#key", service.key)
        page.click("#login button")
        expect(page.locator("#model option").first).to_be_attached()
        turn(page)
        delays = sorted(turn(page) for _ in range(args.turns))
        browser.close()
    high = delays[min(len(delays) - 1, int(0.95 * len(delays)))]
    print(f"{args.turns} turns: p50 {median(delays):.1f} ms, p95 {high:.1f} ms, most {delays[-1]:.1f} ms")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
