"""Figures are written short, and nothing that is seen is lost."""

import re
from io import StringIO
from xml.etree import ElementTree

import pytest

from zipper.evaluation import plot_style


def seen(svg: str) -> list[tuple[str, str, list[float]]]:
    """Every drawn element in order: its kind, its text, the numbers of its place."""
    elements = []
    for element in ElementTree.fromstring(svg).iter():
        places = " ".join(element.get(name, "") for name in ("d", "x", "y"))
        translated = re.findall(r"translate\(([^)]*)", element.get("transform", ""))
        numbers = [float(number) for number in re.findall(r"-?\d+\.?\d*", " ".join([places, *translated]))]
        kind = element.tag.rpartition("}")[2]
        if kind in ("path", "use", "text", "image"):
            elements.append((kind, (element.text or "").strip(), numbers))
    return elements


def test_a_short_figure_shows_what_a_long_one_does(tmp_path):
    figure, (left, right) = plot_style.panels(1, 2, (3.0, 2.0))
    for index in range(3):
        plot_style.line(left, index, [1, 2, 3], [[1 / 3, 0.4], [0.7, 0.9], [index, 1.5]], f"arm {index}")
    left.set(title="x = 0.123456, two\nlines", xlabel="steps")
    left.legend()
    plot_style.bars(right, ["one", "two"], [[1.0, 2.0], [3.123456]])
    whole = StringIO()
    plot_style.styled(figure.savefig)(whole, format="svg", metadata={"Date": None})
    short = plot_style.save(figure, tmp_path / "short").read_text(encoding="utf-8")
    before, after = seen(whole.getvalue()), seen(short)
    assert len(before) > 40
    assert [item[:2] for item in before] == [item[:2] for item in after]
    for (_, text, numbers), (_, _, places) in zip(before, after, strict=True):
        assert places == pytest.approx(numbers, abs=0.01), text
    assert len(short) < 0.75 * len(whole.getvalue())
