from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from imagelab.data.pictures import read_png
from imagelab.report import figures
from imagelab.setup.terminal import told


def random_images(n: int, channels: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, channels, 5, 4), generator=rng, dtype=torch.uint8)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("scale", "gap"), [(1, 0), (1, 2), (3, 1)])
def test_every_cell_of_a_grid(channels, scale, gap):
    images = random_images(7, channels)
    sheet = figures.grid(images, columns=3, scale=scale, gap=gap)
    height, width = 3 * 5 + 2 * gap, 3 * 4 + 2 * gap
    assert sheet.shape[:2] == (height * scale, width * scale)
    assert sheet.ndim == (2 if channels == 1 else 3) and sheet.dtype == np.uint8
    enlarged = sheet[::scale, ::scale].repeat(scale, 0).repeat(scale, 1)
    assert (sheet == enlarged).all()
    sheet = sheet[::scale, ::scale].reshape(height, width, channels)
    for k in range(9):
        y, x = k // 3 * (5 + gap), k % 3 * (4 + gap)
        cell = sheet[y : y + 5, x : x + 4]
        expected = images[k].permute(1, 2, 0).numpy() if k < 7 else 255
        assert (cell == expected).all()
        if k < 6:
            assert (sheet[y + 5 : y + 5 + gap, x : x + 4] == 160).all()
    assert (sheet[:5, 4 : 4 + gap] == 160).all()


def test_a_grid_leaves_its_images_alone():
    images = random_images(4, 1)
    figures.grid(images, columns=2)
    assert torch.equal(images, random_images(4, 1))


def draw(path, shift: float = 0.0) -> None:
    figure, axes = figures.new_figure(4, 2)
    lines = {"a": [1, 2, 3], "b": [3, 2, 1 + shift]}
    figures.plot_lines(axes[0, 0], [0, 1, 2], lines, "x", "y")
    figures.save_figure(figure, path)


def test_lines_of_their_own_x_that_meet():
    _, ((axis,),) = figures.new_figure(3, 2)
    x, lines = {"a": [0, 1], "b": [2, 3]}, {"a": [5, 6], "b": [5, 6]}
    figures.plot_lines(axis, x, lines, "x", "y", markers=False, dashes=True, legend=False)
    a, b = axis.get_lines()
    assert a.get_xdata().tolist() == [0, 1] and b.get_xdata().tolist() == [2, 3]
    assert a.get_linestyle() != b.get_linestyle() and axis.get_legend() is None


def test_the_same_bytes_twice(tmp_path):
    draw(tmp_path / "a.png")
    draw(tmp_path / "b.png")
    draw(tmp_path / "c.png", shift=1)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "c.png").read_bytes()


def named(path, name: str) -> np.ndarray:
    """A figure in which a name stands wherever names of classes stand."""
    figure, axes = figures.new_figure(5, 3)
    figures.class_histogram(axes[0, 0], {name: [0.5, 0.5]}, (name, "b"))
    axes[0, 0].set_title(name)
    figures.save_figure(figure, path)
    return read_png(path)


def test_a_name_is_no_formula(tmp_path):
    """As one it could not even be parsed."""
    assert named(tmp_path / "a.png", "$\\frac{$").size > 0


def test_letters_that_the_usual_font_lacks(tmp_path, capsys, caplog, recwarn):
    """They come from another font; where none has them, one sentence and no warning."""
    from matplotlib.font_manager import findfont, fontManager, get_font

    told.clear()
    usual, other = (set(get_font(findfont(name)).get_charmap())
                    for name in ("DejaVu Sans", "STIXGeneral"))  # fmt: skip
    letter = chr(min(c for c in other - usual if chr(c).isalpha()))
    named(tmp_path / "a.png", f"a{letter}")
    assert capsys.readouterr().err == ""
    files = {font.fname for font in fontManager.ttflist if "Last Resort" not in font.name}
    known = set().union(*(get_font(file).get_charmap() for file in files))
    nowhere = chr(next(c for c in range(0x1B170, 0x1B2FC) if c not in known))  # Nüshu
    named(tmp_path / "b.png", f"a{nowhere}")
    assert f"boxes stand for them: {nowhere}" in capsys.readouterr().err
    assert not recwarn.list and not caplog.records


def test_lines_carry_their_values_and_a_legend_where_there_are_several():
    _, axes = figures.new_figure(4, 2, 1, 2)
    figures.plot_lines(axes[0, 0], [0, 1], {"a": [1, 2], "b": [3, 4]}, "x", "y")
    figures.plot_lines(axes[0, 1], [0, 1], {"a": [1, 2]}, "x", "y", markers=False)
    first, second = axes[0, 0].lines
    assert list(first.get_ydata()) == [1, 2] and list(second.get_ydata()) == [3, 4]
    assert first.get_color() != second.get_color() and first.get_marker() != second.get_marker()
    assert [t.get_text() for t in axes[0, 0].get_legend().get_texts()] == ["a", "b"]
    assert axes[0, 1].get_legend() is None


def test_pictures_are_shown_unstretched():
    _, axes = figures.new_figure(4, 2, 1, 2)
    figures.show_image(axes[0, 0], np.full((4, 4), 0.5), "half")
    figures.show_image(axes[0, 1], np.full((4, 4), 100, np.uint8))
    assert axes[0, 0].images[0].get_clim() == (0, 1) and axes[0, 0].get_title() == "half"
    assert axes[0, 1].images[0].get_clim() == (0, 255)


def test_titles_stand_where_matplotlib_would_put_them(tmp_path, monkeypatch):
    written = []
    for place in (figures.STYLE["axes.titley"], None):
        monkeypatch.setitem(figures.STYLE, "axes.titley", place)
        figure, axes = figures.new_figure(6, 4, 2, 2)
        figures.show_image(axes[0, 0], np.eye(8), "two\nlines")
        figures.plot_lines(axes[0, 1], [0, 1], {"a": [2, 3]}, "x", "y")
        axes[0, 1].set_title("a curve")
        figures.save_figure(figure, path := tmp_path / f"{place}.png")
        written.append(path.read_bytes())
    assert written[0] == written[1]


def test_side_by_side_has_a_place_for_every_picture(tmp_path):
    picture = np.zeros((20, 20))
    three = {c: picture for c in "abc"}
    for name, shown, rows in (("one", {"a": picture}, 1), ("three", three, 1), ("rows", three, 2)):
        figure = figures.plot_side_by_side(shown, rows=rows, height=1)
        figures.save_figure(figure, tmp_path / f"{name}.png")
    one, three, rows = (read_png(tmp_path / f"{name}.png") for name in ("one", "three", "rows"))
    assert three.shape[1] > 2 * one.shape[1] and rows.shape[0] > 1.5 * one.shape[0]
    dark = [(image[..., :3].max(axis=2) == 0).sum() for image in (one, three, rows)]
    assert dark[1] > 2.5 * dark[0] and dark[2] > 2.5 * dark[0]


def test_rows_and_columns_carry_their_names():
    figure = figures.plot_rows({"a": random_images(2, 1), "b": random_images(2, 1)}, ["x", "y"])
    names = [[text.get_text() for text in axis.texts] for axis in figure.axes]
    assert names == [["a", "x", "y"], ["b"]]
    places = [text.xy[0] for text in figure.axes[0].texts[1:]]  # the middles of the two columns
    assert places == [0.25, 0.75]


def test_long_names_of_rows_stay_beside_their_row():
    names = (
        "learned on photographs, and told the class",
        "6",
        "diffusion, class by classifier: 89%",
    )
    figure = figures.plot_rows({name: random_images(5, 1) for name in names})
    figure.draw_without_rendering()
    boxes = [axis.texts[0].get_window_extent() for axis in figure.axes]
    for axis, box in zip(figure.axes, boxes, strict=True):
        row = axis.get_window_extent()
        assert row.y0 <= box.y0 and box.y1 <= row.y1 and 0 <= box.x0 < box.x1 <= row.x0


def test_notes_stand_in_the_corners_of_their_pictures():
    rows = {"a": random_images(3, 1), "b": random_images(3, 1)}
    figure = figures.plot_rows(rows, notes={"b": ["x", "", "z"]})
    above, below = figure.axes
    assert len(above.texts) == 1  # the name of the row
    lefts = [0, 12, 24]  # each picture is 4 wide, the gap 2, both twice as large
    for text, note, left in zip(below.texts[:3], ["x", "", "z"], lefts, strict=True):
        assert text.get_text() == note and text.get_position()[0] == left + 2


def test_a_plane_s_numbers_stand_at_its_pictures():
    _, axes = figures.new_figure(4, 4)
    figures.show_plane(axes[0, 0], np.zeros((24, 24), np.uint8), torch.linspace(-1.2, 1.2, 12))
    for ticks, labels in (
        (axes[0, 0].get_xticks(), axes[0, 0].get_xticklabels()),
        (axes[0, 0].get_yticks(), axes[0, 0].get_yticklabels()),
    ):
        assert list(ticks) == [0.5, 2.5, 4.5, 6.5, 8.5, 10.5]  # the middles of every second picture
        assert [t.get_text() for t in labels][:2] == ["-1.2", "-0.8"]


def test_names_of_classes_in_a_plane_never_meet():
    points = torch.randn(300, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([1, 50])
    _, axes = figures.new_figure(5, 5)
    labels = torch.arange(300) % 10  # all in one place
    figures.plot_classes(axes[0, 0], points, labels, "0123456789")
    axes[0, 0].figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in axes[0, 0].texts]
    assert [text.get_text() for text in axes[0, 0].texts] == list("0123456789")
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


def test_a_class_in_two_groups_is_named_in_one_of_them():
    points = torch.tensor([[0.0, 0.0]] * 6 + [[10.0, 0.0]] * 5 + [[5.0, 3.0]] * 3)
    _, axes = figures.new_figure(5, 5)
    figures.plot_classes(
        axes[0, 0], points, torch.tensor([0] * 11 + [1] * 3), ("two groups", "one")
    )
    places = [text.get_position() for text in axes[0, 0].texts]
    assert places[0] == pytest.approx((0, 0)) and places[1] == pytest.approx((5, 3))


def test_bars_tell_what_is_read_surely():
    _, axes = figures.new_figure(4, 2)
    shares, surely = {"samples": [0.5, 0.5]}, {"samples": [0.1, 0.0]}
    figures.class_histogram(axes[0, 0], shares, ("left", "right"), surely)
    whole, full = axes[0, 0].containers
    assert [bar.get_height() for bar in whole] == [0.5, 0.5] and whole[0].get_alpha() < 0.5
    assert [bar.get_height() for bar in full] == [0.1, 0.0] and full[0].get_alpha() is None
    assert [text.get_text() for text in axes[0, 0].get_legend().get_texts()] == ["samples"]
    assert "surely" in axes[0, 0].get_xlabel()


def test_histogram_bars_have_the_given_heights():
    _, axes = figures.new_figure(4, 2)
    shares = {"samples": [0.5, 0.3, 0.2], "real": [0.1, 0.2, 0.7]}
    figures.class_histogram(axes[0, 0], shares, ("left", "middle", "right"))
    axis = axes[0, 0]
    for bars, (name, heights) in zip(axis.containers, shares.items(), strict=True):
        assert bars.get_label() == name
        assert [bar.get_height() for bar in bars] == heights
    edges = sorted((b.get_x(), b.get_x() + b.get_width()) for c in axis.containers for b in c)
    for (_, end), (start, _) in itertools.pairwise(edges):
        assert start >= end - 1e-9
    assert [t.get_text() for t in axis.get_xticklabels()] == ["left", "middle", "right"]


def test_show_without_a_display_says_so(tmp_path, monkeypatch, capsys):
    from matplotlib import pyplot

    pyplot.switch_backend("agg")
    monkeypatch.setattr(pyplot, "show", lambda: pytest.fail("there is no display"))
    figures.show([tmp_path / "missing.png"])
    captured = capsys.readouterr()
    assert "no display" in captured.err and captured.out == ""
