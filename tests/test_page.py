"""The demo page in headless Chromium."""

import io
import itertools
import os
from collections.abc import Iterator

import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from tests.drawing import digit_strokes
from tests.test_digits import INVALID_PICTURES, SEVENS

expect.set_options(timeout=30_000)  # ms, for a busy machine

# Announcements are replaced by the next after a while.
COLLECT_ANNOUNCEMENTS = """
    window.announcements = [];
    document.addEventListener("DOMContentLoaded", () => {
        const status = document.querySelector("[role=status]");
        const collect = () => announcements.push(status.textContent);
        new MutationObserver(collect).observe(status, { childList: true, characterData: true, subtree: true });
    });
"""


@pytest.fixture
def page(request, browser, shipped_server) -> Iterator[Page]:
    """Open the page in a new window; fail on a script error, a console message or a request to another server."""
    page = browser.new_page(color_scheme=getattr(request, "param", "light"), viewport={"width": 1000, "height": 800})
    failures = []
    page.on("pageerror", lambda error: failures.append(str(error)))
    page.on("console", lambda message: "422" in message.text or failures.append(message.text))
    address = f"http://{shipped_server.address}/"
    page.on("request", lambda request: request.url.startswith(address) or failures.append(request.url))
    page.add_init_script(COLLECT_ANNOUNCEMENTS)
    page.goto(address)
    yield page
    page.close()
    assert failures == []


def draw_with_mouse(page: Page, digit: int, height: float, left: float, top: float) -> None:
    """Draw a digit with the mouse; sizes are pixels of the window, positions start at the canvas's top left corner."""
    box = page.locator("#drawing").bounding_box()
    for first, *others in digit_strokes(digit, height, box["x"] + left, box["y"] + top):
        page.mouse.move(*first)
        page.mouse.down()
        for point in others:
            page.mouse.move(*point)
        page.mouse.up()


def expect_announcement(page: Page, announcement: str) -> None:
    """Wait until a screen reader has been told this."""
    page.wait_for_function("text => announcements.includes(text)", arg=announcement)


def open_picture(page: Page, content: bytes) -> None:
    """Open a picture with the file dialog."""
    page.locator("#file").set_input_files({"name": "7.png", "mimeType": "image/png", "buffer": content})


def expect_text(page: Page, digit: int) -> None:
    """Wait for a text, and until no request is in progress whose answer would replace the digits."""
    expect(page.locator("#text")).to_have_text(str(digit))
    expect(page.locator("#predictions")).to_have_attribute("aria-busy", "false")


@pytest.mark.parametrize(("page", "digits"), [("light", range(10)), ("dark", range(3))], indirect=["page"])
def test_digits_drawn_with_the_mouse_are_classified_at_any_position(page, digits):
    page.locator("#brush").fill("20")
    for digit, (height, left, top) in zip(digits, itertools.cycle([(240, 130, 100), (80, 10, 10), (60, 380, 370)])):
        draw_with_mouse(page, digit, height, left, top)
        expect_text(page, digit)
        page.get_by_role("button", name="Clear").click()
        expect(page.locator("#message")).to_have_text("The canvas is empty.")


def test_the_probabilities_of_all_models_are_shown(page):
    draw_with_mouse(page, 3, 240, 130, 100)
    expect_text(page, 3)
    assert page.locator("thead th").all_inner_texts() == ["cnn", "cnn_int8", "fnn", "fnn_int8"]
    assert page.locator("tbody th").all_inner_texts() == [str(digit) for digit in range(10)]
    bar_width, text = page.evaluate(
        """() => {
            const cell = document.querySelector("tbody tr:nth-child(4) td");
            return [cell.querySelector("i").offsetWidth / cell.offsetWidth, cell.innerText];
        }"""
    )
    assert bar_width == pytest.approx(float(text.rstrip("%")) / 100, abs=0.02)


def test_the_model_input_is_shown(page):
    draw_with_mouse(page, 3, 240, 130, 100)
    expect_text(page, 3)
    pixels = page.evaluate(
        "[...document.querySelector('#digits canvas').getContext('2d').getImageData(0, 0, 28, 28).data]"
    )
    assert pixels[:4] == [0, 0, 0, 255]
    assert max(pixels[::4]) > 200


def test_undo_removes_the_last_stroke(page):
    draw_with_mouse(page, 1, 200, 60, 100)
    draw_with_mouse(page, 1, 200, 260, 100)
    expect_text(page, 11)
    page.get_by_role("button", name="Undo").click()
    expect_text(page, 1)
    page.keyboard.press("Control+z")
    expect(page.locator("#message")).to_have_text("The canvas is empty.")
    expect(page.get_by_role("button", name="Undo")).to_be_disabled()


def test_lines_of_digits_are_read_with_a_box_around_each(page):
    page.locator("#brush").fill("12")
    for digit, left, top in [(2, 60, 60), (7, 160, 60), (4, 60, 240), (0, 160, 240)]:
        draw_with_mouse(page, digit, 110, left, top)
    expect(page.locator("#text span")).to_have_text(["27", "40"])
    expect(page.locator("#predictions")).to_have_attribute("aria-busy", "false")
    expect(page.locator("#message")).to_contain_text("Confidence: ")
    canvas = page.locator("#drawing").bounding_box()
    boxes = [box.bounding_box() for box in page.locator("#boxes i").all()]
    assert [box["x"] - canvas["x"] for box in boxes] == pytest.approx([60, 160, 60, 160], abs=25)
    assert [box["y"] - canvas["y"] for box in boxes] == pytest.approx([60, 60, 240, 240], abs=15)
    if directory := os.environ.get("SCREENSHOTS"):
        page.screenshot(path=f"{directory}/page-lines.png")


def test_the_probabilities_of_a_selected_digit_are_shown(page):
    page.locator("#brush").fill("12")
    draw_with_mouse(page, 2, 110, 60, 60)
    draw_with_mouse(page, 7, 110, 160, 60)
    expect_text(page, 27)
    assert page.locator("tr:has(td.most-probable) th").all_inner_texts() == ["7"]
    page.get_by_role("button", name="2 (").click()
    expect(page.get_by_role("button", name="2 (")).to_have_attribute("aria-pressed", "true")
    assert page.locator("tr:has(td.most-probable) th").all_inner_texts() == ["2"]


def test_errors_are_shown_only_when_the_stroke_is_finished(page):
    dots = Image.new("L", (560, 560), "white")
    for x, y in itertools.product(range(20, 540, 24), range(20, 320, 24)):
        dots.paste(0, (x, y, x + 4, y + 4))
    content = io.BytesIO()
    dots.save(content, "PNG")
    open_picture(page, content.getvalue())
    expect(page.locator("#message")).to_contain_text("at most 256 pieces of ink, got 286")
    page.locator("#brush").fill("4")
    box = page.locator("#drawing").bounding_box()
    page.mouse.move(box["x"] + 200, box["y"] + 320)
    with page.expect_response(lambda response: response.url.endswith("/digits")) as response:
        page.mouse.down()
    assert response.value.status == 422
    expect(page.locator("#message")).to_contain_text("got 286")
    page.mouse.up()
    expect(page.locator("#message")).to_contain_text("got 287")


def test_a_drawing_that_is_no_digit_is_marked(page):
    box = page.locator("#drawing").bounding_box()
    page.mouse.move(box["x"] + 100, box["y"] + 100)
    page.mouse.down()
    page.mouse.up()
    expect(page.locator("#text")).to_have_text("?")
    expect(page.locator("#message")).to_have_text("?: a filled shape without strokes")
    expect(page.locator("#boxes i")).to_have_class(["unread"])


def test_a_digit_can_be_drawn_with_the_keyboard_alone(page):
    page.keyboard.press("Tab")
    expect(page.locator("#drawing")).to_be_focused()
    for _ in range(3):
        page.keyboard.press("Shift+ArrowUp")
    assert page.evaluate("announcements") == []
    page.keyboard.press(" ")
    expect_announcement(page, "Pen down")
    for _ in range(6):
        page.keyboard.press("Shift+ArrowDown")
    page.keyboard.press(" ")
    expect_announcement(page, "Pen up")
    expect_text(page, 1)
    expect(page.get_by_role("status")).to_contain_text("1. Confidence: ")
    page.keyboard.press("Delete")
    expect(page.locator("#message")).to_have_text("The canvas is empty.")


def test_holding_the_space_key_lowers_the_pen_once(page):
    page.locator("#drawing").focus()
    for _ in range(4):
        page.keyboard.down(" ")
    expect_announcement(page, "Pen down")
    page.keyboard.press("Control+z")
    expect_announcement(page, "Pen up")
    expect(page.get_by_role("button", name="Undo")).to_be_disabled()


def test_the_canvas_gets_the_focus_when_a_button_is_disabled(page):
    draw_with_mouse(page, 1, 200, 60, 100)
    page.get_by_role("button", name="Clear").press("Enter")
    expect(page.locator("#drawing")).to_be_focused()


def test_a_large_photo_can_be_opened(page):
    photo = Image.new("RGB", (5712, 4284), "white")
    photo.paste(Image.open(io.BytesIO(SEVENS["JPEG"]())).resize((3000, 3000)), (1300, 600))
    content = io.BytesIO()
    photo.save(content, "JPEG")
    open_picture(page, content.getvalue())
    expect_text(page, 7)
    canvas, box = (page.locator(selector).bounding_box() for selector in ("#drawing", "#boxes i"))
    # The seven takes 0.6 of the height of its square of 3,000 pixels, in a photo of 5,712 pixels.
    assert box["height"] / canvas["width"] == pytest.approx(0.6 * 3000 / 5712, abs=0.03)


def test_a_picture_can_be_opened(page):
    open_picture(page, SEVENS["JPEG"]())
    expect_text(page, 7)


@pytest.mark.parametrize("page", ["light", "dark"], indirect=True)
def test_strokes_can_be_drawn_on_a_picture(page):
    blank = io.BytesIO()
    Image.new("RGB", (400, 400), "white").save(blank, "PNG")
    open_picture(page, blank.getvalue())
    expect(page.locator("#message")).to_contain_text("got an empty picture")
    draw_with_mouse(page, 5, 200, 130, 100)
    expect_text(page, 5)


@pytest.mark.parametrize("event", ["drop", "paste"])
def test_a_picture_can_be_dropped_or_pasted(page, event):
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
    expect_text(page, 7)


def test_a_file_that_is_not_a_picture_shows_the_error(browser, shipped_server):
    page = browser.new_page()
    page.goto(f"http://{shipped_server.address}/")
    open_picture(page, INVALID_PICTURES["text"][0]())
    expect(page.locator("#message")).to_contain_text("got a file that cannot be decoded")
    page.close()


def test_a_finger_draws_on_a_phone_without_horizontal_scrolling(browser, shipped_server):
    page = browser.new_page(viewport={"width": 360, "height": 740}, has_touch=True)
    page.goto(f"http://{shipped_server.address}/")
    box = page.locator("#drawing").bounding_box()
    touch = page.context.new_cdp_session(page)
    for first, *others in digit_strokes(7, 200, box["x"] + 90, box["y"] + 60):
        for kind, points in (("touchStart", [first]), *(("touchMove", [point]) for point in others), ("touchEnd", [])):
            touch_points = [{"x": x, "y": y} for x, y in points]
            touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": touch_points})
    expect_text(page, 7)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.close()


def test_the_content_security_policy_blocks_other_origins_and_inline_code(browser, shipped_server):
    page = browser.new_page()
    page.goto(f"http://{shipped_server.address}/")
    blocked = []
    page.on("console", lambda message: blocked.append(message.text))
    page.evaluate("fetch('http://localhost:1/').catch(() => {})")
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=http://localhost:1/><p style=color:red>')")
    page.evaluate("document.head.append(Object.assign(document.createElement('script'), { text: 'window.x = 1' }))")
    assert page.evaluate("window.x") is None
    while sum("Content Security Policy" in text for text in blocked) < 4:
        page.wait_for_timeout(100)  # ms, in which messages are received
    page.close()


@pytest.mark.parametrize("page", ["light", "dark"], indirect=True)
def test_the_page_follows_the_color_scheme(request, page):
    scheme = request.node.callspec.params["page"]
    draw_with_mouse(page, 5, 200, 200, 180)
    expect_text(page, 5)
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == {"light": "rgb(255, 255, 255)", "dark": "rgb(22, 24, 29)"}[scheme]
    if directory := os.environ.get("SCREENSHOTS"):  # keeps the README's pictures there
        page.screenshot(path=f"{directory}/page-{scheme}.png")
