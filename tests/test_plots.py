"""The page that `dvc plots show` writes."""

from experiments import plots
from tests.conftest import call


def test_plots_are_drawn_without_a_network(project, browser):
    plots.main()
    page = browser.new_page(offline=True)
    requests, errors = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("pageerror", lambda error: errors.append(error))
    page.goto(call(project, "dvc", "plots", "show").strip())
    for title in ("fnn: confusion matrix", "cnn: errors by class", "cnn: robustness"):
        page.locator(f"svg:has-text('{title}')").first.wait_for()
    assert page.locator("svg.marks").count() == page.locator(".vega-embed").count() > 10
    assert errors == []
    assert {url.partition(":")[0] for url in requests} == {"file"}
