"""The page of ``glipv2 serve`` in a real browser: upload, prompt, boxes; a file that is not a photograph says so."""

import shutil

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio")
webdriver = pytest.importorskip("selenium.webdriver")

from page_cases import make_predictor  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

from glipv2_d2.program.page import THEME, build_page  # noqa: E402

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None or DRIVER is None, reason="needs chromium and chromedriver"),
]
SWITCHES = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
# Seconds; two busy cores are slow.
PATIENCE = 120


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    page = build_page(make_predictor(tmp_path_factory.mktemp("page")), "small")
    _, address, _ = page.launch(
        server_name="127.0.0.1", theme=THEME, footer_links=[], quiet=True, prevent_thread_lock=True
    )
    yield address
    page.close()


@pytest.fixture(params=[(1280, 1000), (400, 850)], ids=["desk", "phone"])
def browser(request, tmp_path):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    width, height = request.param
    for switch in (*SWITCHES, f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},{height}"):
        options.add_argument(switch)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def wait(browser, condition):
    return WebDriverWait(browser, PATIENCE, ignored_exceptions=[Exception]).until(condition)


def shown_text(browser):
    return browser.find_element(By.TAG_NAME, "body").text


def press(browser, name):
    """Press the last button of this name with the keyboard: the first may be the tab."""
    button = [button for button in browser.find_elements(By.TAG_NAME, "button") if button.text == name][-1]
    button.send_keys(Keys.ENTER)


def upload(browser, address, path):
    browser.get(address)
    field = wait(browser, lambda browser: browser.find_element(By.CSS_SELECTOR, "input[type=file]"))
    field.send_keys(str(path))
    wait(browser, lambda browser: browser.find_elements(By.CSS_SELECTOR, "[data-testid=image] img, img"))


def test_a_photograph_and_names_give_boxes(browser, address, tmp_path):
    path = tmp_path / "photograph.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (120, 160, 3), dtype=np.uint8)).save(path)
    upload(browser, address, path)
    # The threshold by its field: an untrained model gives low scores.
    threshold = browser.find_element(By.CSS_SELECTOR, "input[type=number]")
    threshold.send_keys(Keys.CONTROL, "a")
    threshold.send_keys("0", Keys.ENTER)
    browser.find_element(By.TAG_NAME, "textarea").send_keys("zebra, cup", Keys.ENTER)
    wait(browser, lambda browser: "found with a score of at least 0.00" in shown_text(browser))
    wait(browser, lambda browser: len(browser.find_elements(By.TAG_NAME, "img")) >= 2)
    # Another threshold draws anew, without the model.
    threshold.send_keys(Keys.CONTROL, "a")
    threshold.send_keys("1", Keys.ENTER)
    wait(browser, lambda browser: "Nothing found. The best score is" in shown_text(browser))
    # Nothing sticks out at the side, of a phone's screen neither.
    assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")


def test_a_file_that_is_not_a_photograph_says_so(browser, address, tmp_path):
    path = tmp_path / "holiday.jpg"
    path.write_text("not an image")
    upload(browser, address, path)
    browser.find_element(By.TAG_NAME, "textarea").send_keys("zebra")
    press(browser, "Find")
    assert wait(browser, lambda browser: "holiday.jpg: cannot identify a format of images" in shown_text(browser))


def test_a_question_and_a_description_are_answered(browser, address, tmp_path):
    path = tmp_path / "photograph.png"
    Image.fromarray(np.full((120, 160, 3), 90, np.uint8)).save(path)
    upload(browser, address, path)
    press(browser, "Ask")
    question = wait(
        browser, lambda browser: next(x for x in browser.find_elements(By.TAG_NAME, "textarea") if x.is_displayed())
    )
    question.send_keys("is there a dog?", Keys.ENTER)
    assert wait(browser, lambda browser: all(answer in shown_text(browser) for answer in ("yes", "no", "two")))
    press(browser, "Describe")
    press(browser, "Describe")
    assert wait(browser, lambda browser: len(browser.find_elements(By.TAG_NAME, "img")) >= 2)
