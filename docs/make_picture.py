"""Draw docs/images/edge.png from a run folder (needs chromium and chromedriver).

python docs/make_picture.py runs/quickstart
"""

import shutil
import sys
import tempfile
from pathlib import Path

from plotly.subplots import make_subplots
from selenium import webdriver

import thalweg as tw
from thalweg.report import figures


def draw(folder: str, target: Path) -> None:
    data = tw.open_run(folder).data
    figure = make_subplots(rows=1, cols=2, horizontal_spacing=0.09)
    for column, source in enumerate((figures.spectrum_figure(data), figures.loss_figure(data)), 1):
        for trace in source.data:
            figure.add_trace(trace, row=1, col=column)
        figure.update_yaxes(title_text=source.layout.yaxis.title.text, type=source.layout.yaxis.type, row=1, col=column)
    figure.update_xaxes(title_text="step")
    figure.update_layout(
        template="plotly_white",
        margin={"l": 60, "r": 15, "t": 40, "b": 45},
        legend={"orientation": "h", "y": 1.13},
        width=1000,
        height=380,
    )
    with tempfile.TemporaryDirectory() as scratch:
        page = Path(scratch) / "picture.html"
        figure.write_html(page, include_plotlyjs=True, config={"displayModeBar": False})
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium")
        for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1016,520"):
            options.add_argument(flag)
        browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
        browser.get(page.as_uri())
        browser.find_element("css selector", ".js-plotly-plot").screenshot(str(target))
        browser.quit()


if __name__ == "__main__":
    draw(sys.argv[1], Path(__file__).parent / "images" / "edge.png")
