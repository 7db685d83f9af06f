"""The page, in a real browser."""

import io
import os
import shutil
from collections.abc import Iterator

import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.drawing import strokes
from tests.test_digits import NOT_ONE_DIGIT, SEVENS

OFFLINE = ("--no-sandbox", "--disable-background-networking", "--disable-component-update")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("needs Chromium: `apt-get install chromium`")
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=chromium, args=OFFLINE)


@pytest.fixture
def page(request, browser, shipped_server) -> Iterator[Page]:
    """The page in a new window, which must not fail or ask another machine for anything."""
    page = browser.new_page(color_scheme=getattr(request, "param", "light"), viewport={"width": 1000, "height": 800})
    failures = []
    page.on("pageerror", lambda error: failures.append(str(error)))
    page.on("console", lambda message: "422" in message.text or failures.append(message.text))
    page.on(
        "request", lambda asked: asked.url.startswith(f"http://{shipped_server.address}/") or failures.append(asked)
    )
    page.goto(f"http://{shipped_server.address}/")
    yield page
    page.close()
    assert failures == []


def draw(page: Page, digit: int, size: float, left: float, top: float) -> None:
    """Draw with the mouse, in pixels of the window from the canvas's corner."""
    box = page.locator("#drawing").bounding_box()
    for first, *others in strokes(digit, size, box["x"] + left, box["y"] + top):
        page.mouse.move(*first)
        page.mouse.down()
        for point in others:
            page.mouse.move(*point)
        page.mouse.up()


def choose(page: Page, content: bytes) -> None:
    """Open a file."""
    page.locator("#file").set_input_files({"name": "7.png", "mimeType": "image/png", "buffer": content})


def sees(page: Page, digit: int) -> None:
    expect(page.locator("#answer")).to_contain_text(f"cnn: {digit} (")


@pytest.mark.parametrize("page, digit", list(zip(["light", "dark"] * 5, range(10))), indirect=["page"])
def test_digits_drawn_with_the_mouse_are_read_wherever_they_are(page, digit):
    page.locator("#brush").fill("20")
    for size, left, top in ((240, 130, 100), (80, 10, 10), (60, 380, 370)):
        draw(page, digit, size, left, top)
        sees(page, digit)
        page.get_by_role("button", name="Clear").click()
        expect(page.locator("#answer")).to_have_text("Nothing is drawn yet.")


def test_all_models_probabilities_are_shown(page):
    draw(page, 3, 240, 130, 100)
    sees(page, 3)
    assert page.locator("thead th").all_inner_texts() == ["cnn", "cnn_int8", "fnn", "fnn_int8"]
    assert page.locator("tbody th").all_inner_texts() == [str(digit) for digit in range(10)]
    share, text = page.evaluate(
        """() => {
            const cell = document.querySelector("tbody tr:nth-child(4) td");
            return [cell.querySelector("i").offsetWidth / cell.offsetWidth, cell.innerText];
        }"""
    )
    assert share == pytest.approx(float(text.rstrip("%")) / 100, abs=0.02)


def test_what_the_models_saw_is_shown(page):
    draw(page, 3, 240, 130, 100)
    sees(page, 3)
    pixels = page.evaluate("[...document.getElementById('seen').getContext('2d').getImageData(0, 0, 28, 28).data]")
    assert pixels[:4] == [0, 0, 0, 255]
    assert max(pixels[::4]) > 200


def test_undo_takes_back_the_last_stroke(page):
    draw(page, 1, 200, 60, 100)
    draw(page, 1, 200, 260, 100)
    expect(page.locator("#answer")).to_contain_text("several things")
    page.get_by_role("button", name="Undo").click()
    sees(page, 1)
    page.keyboard.press("Control+z")
    expect(page.locator("#answer")).to_have_text("Nothing is drawn yet.")
    expect(page.get_by_role("button", name="Undo")).to_be_disabled()


def test_what_is_no_digit_yet_is_not_called_wrong_before_the_pen_is_lifted(page):
    box = page.locator("#drawing").bounding_box()
    page.mouse.move(box["x"] + 100, box["y"] + 100)
    with page.expect_response("**/digits") as response:
        page.mouse.down()
    assert response.value.status == 422
    expect(page.locator("#answer")).to_have_text("Nothing is drawn yet.")
    page.mouse.up()
    expect(page.locator("#answer")).to_contain_text("the picture shows a blot")


def test_a_digit_is_drawn_with_the_keyboard_alone(page):
    page.keyboard.press("Tab")
    expect(page.locator("#drawing")).to_be_focused()
    spoken = page.get_by_role("status")  # for a screen reader
    for key, times, text in (
        ("Shift+ArrowUp", 3, ""),
        (" ", 1, "Pen down"),
        ("Shift+ArrowDown", 6, None),
        (" ", 1, "Pen up"),
    ):
        for _ in range(times):
            page.keyboard.press(key)
        if text is not None:
            expect(spoken).to_have_text(text)
    sees(page, 1)
    expect(spoken).to_contain_text("cnn: 1 (")
    page.keyboard.press("Delete")
    expect(page.locator("#answer")).to_have_text("Nothing is drawn yet.")


def test_a_key_held_down_lowers_the_pen_once(page):
    page.locator("#drawing").focus()
    for _ in range(4):
        page.keyboard.down(" ")
    expect(page.get_by_role("status")).to_have_text("Pen down")
    page.keyboard.press("Control+z")
    expect(page.get_by_role("status")).to_have_text("Pen up")
    expect(page.get_by_role("button", name="Undo")).to_be_disabled()


def test_the_keyboards_focus_is_not_lost(page):
    draw(page, 1, 200, 60, 100)
    page.get_by_role("button", name="Clear").press("Enter")
    expect(page.locator("#drawing")).to_be_focused()


def test_a_large_photo_is_opened(page):
    photo = Image.new("RGB", (5712, 4284), "white")
    photo.paste(Image.open(io.BytesIO(SEVENS["JPEG"]())).resize((3000, 3000)), (1300, 600))
    content = io.BytesIO()
    photo.save(content, "JPEG")
    choose(page, content.getvalue())
    sees(page, 7)


def test_a_picture_is_opened(page):
    choose(page, SEVENS["JPEG"]())
    sees(page, 7)


@pytest.mark.parametrize("page", ["light", "dark"], indirect=True)
def test_strokes_on_a_picture_are_seen(page):
    blank = io.BytesIO()
    Image.new("RGB", (400, 400), "white").save(blank, "PNG")
    choose(page, blank.getvalue())
    expect(page.locator("#answer")).to_contain_text("the picture is empty")
    draw(page, 5, 200, 130, 100)
    sees(page, 5)


@pytest.mark.parametrize("event", ["drop", "paste"])
def test_a_picture_is_dropped_or_pasted(page, event):
    page.evaluate(
        """([event, bytes]) => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], "7.png", { type: "image/png" }));
            const Kind = event === "drop" ? DragEvent : ClipboardEvent;
            const given = { bubbles: true, cancelable: true, dataTransfer: data, clipboardData: data };
            document.body.dispatchEvent(new Kind(event, given));
        }""",
        [event, list(SEVENS["dark on light"]())],
    )
    sees(page, 7)


def test_a_picture_that_is_none_is_told(browser, shipped_server):
    page = browser.new_page()
    page.goto(f"http://{shipped_server.address}/")
    page.locator("#file").set_input_files(
        {"name": "7.png", "mimeType": "image/png", "buffer": NOT_ONE_DIGIT["text"][0]()}
    )
    expect(page.locator("#answer")).to_contain_text("this is no picture that can be read")
    page.close()


def test_a_finger_draws_on_a_phone_and_nothing_is_cut_off(browser, shipped_server):
    page = browser.new_page(viewport={"width": 360, "height": 740}, has_touch=True)
    page.goto(f"http://{shipped_server.address}/")
    box = page.locator("#drawing").bounding_box()
    touch = page.context.new_cdp_session(page)
    for first, *others in strokes(7, 200, box["x"] + 90, box["y"] + 60):
        for kind, points in (("touchStart", [first]), *(("touchMove", [point]) for point in others), ("touchEnd", [])):
            places = [{"x": x, "y": y} for x, y in points]
            touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": places})
    sees(page, 7)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.close()


def test_the_policy_keeps_the_page_to_itself(browser, shipped_server):
    page = browser.new_page()
    page.goto(f"http://{shipped_server.address}/")
    blocked = []
    page.on("console", lambda message: blocked.append(message.text))
    page.evaluate("fetch('http://localhost:1/').catch(() => {})")
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=http://localhost:1/><p style=color:red>')")
    page.evaluate("document.head.append(Object.assign(document.createElement('script'), { text: 'window.x = 1' }))")
    assert page.evaluate("window.x") is None
    assert sum("Content Security Policy" in text for text in blocked) >= 4
    page.close()


@pytest.mark.parametrize("page", ["light", "dark"], indirect=True)
def test_it_follows_the_systems_colours(request, page):
    scheme = request.node.callspec.params["page"]
    draw(page, 5, 200, 200, 180)
    sees(page, 5)
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == {"light": "rgb(255, 255, 255)", "dark": "rgb(22, 24, 29)"}[scheme]
    if folder := os.environ.get("SCREENSHOTS"):  # where to keep them, for the README
        page.screenshot(path=f"{folder}/page-{scheme}.png")
