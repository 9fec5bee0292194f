"""The page in a real browser: a photo is chosen, dropped, refused; by mouse, keyboard and screen reader."""

import shutil

import pytest

pytest.importorskip("fastapi", reason='fastapi is not installed: pip install "stdc-fast[serve]"')
api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
from served import LONG, Process, png  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DROP = """
async ([name, bytes]) => {
  const data = new DataTransfer();
  data.items.add(new File([new Uint8Array(bytes)], name, {type: "image/png"}));
  document.dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true}));
}
"""


@pytest.fixture(scope="module")
def address(tiny_weights):
    with Process("-m", tiny_weights, "--device", "cpu", "--dtype", "float32") as server:
        yield server.address


@pytest.fixture
def page(address):
    if CHROMIUM is None:
        pytest.skip("there is no Chromium: apt install chromium")
    with api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(1000 * LONG)
        page.faults, page.asked = [], []
        page.on("pageerror", lambda error: page.faults.append(str(error)))
        page.on("request", lambda request: page.asked.append(request.url))
        for _ in range(600):  # until the model is loaded
            page.goto(address)
            told = page.locator("#model:not(:empty)").or_(page.locator("#status.bad")).first
            if told.get_attribute("id") == "model":
                break
            page.wait_for_timeout(100)
        yield page
        browser.close()


def test_a_photo_is_chosen(page, address, model, photo):
    page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": png(photo())})
    page.locator("#status", has_text="a.png: labelled.").wait_for()
    shares = model.predict(photo()).shares()
    shares = {name: f"{100 * share:.1f} %" for name, share in shares.items() if share >= 5e-4}
    rows = page.locator("#legend tr")
    found = {row.locator("th").inner_text(): row.locator("td").inner_text() for row in rows.all()}
    assert found == shares
    sizes = page.evaluate("['photo', 'colours'].map((id) => document.getElementById(id).naturalWidth)")
    assert sizes == [96, 96]
    page.focus("#opacity")
    page.keyboard.press("End")
    assert page.locator("#percent").inner_text() == "100 %"
    assert page.evaluate("getComputedStyle(document.getElementById('colours')).opacity") == "1"
    assert page.faults == [] and all(url.startswith((address, "blob:", "data:")) for url in page.asked)


def test_a_photo_is_dropped_after_a_bad_one(page, photo):
    page.set_input_files("#file", {"name": "half.png", "mimeType": "image/png", "buffer": png(photo())[:200]})
    page.locator("#status.bad", has_text="half.png: can not be decoded").wait_for()
    assert not page.locator("#result").is_visible()
    page.evaluate(DROP, ["dropped.png", list(png(photo(seed=3)))])
    page.locator("#status", has_text="dropped.png: labelled.").wait_for()
    assert page.locator("#result").is_visible() and page.locator("#status.bad").count() == 0


def test_it_has_names_for_everything(page):
    """The control for files is reached by its label and the keyboard, and the state is announced."""
    assert page.get_by_label("Choose a photo").get_attribute("type") == "file"
    assert page.get_by_label("Opacity of the labels").get_attribute("type") == "range"
    assert page.get_by_role("status").count() == 1
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "file"
