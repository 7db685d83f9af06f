"""The report for a pull request."""

from experiments import report
from stages import artifacts


def test_the_report_compares_metrics_and_shows_every_plot_as_a_picture(project):
    metrics = artifacts.read_json(artifacts.metrics("fnn"))
    metrics["fnn"]["accuracy"] = 0.125
    artifacts.write_json(artifacts.metrics("fnn"), metrics)
    report.main("HEAD")
    lines = (report.FOLDER / report.REPORT).read_text().splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| ")]
    assert [(row[1], row[3]) for row in rows[1:]] == [("fnn.accuracy", "0.125")]
    pictures = [line.rpartition("(")[2].rstrip(")") for line in lines if line.startswith("![")]
    assert {"loss.png", "artifacts_fnn_confusion.csv.png", "workspace_artifacts_cnn_mistakes.png"} <= set(pictures)
    for picture in pictures:
        assert (report.FOLDER / picture).read_bytes().startswith(b"\x89PNG")
