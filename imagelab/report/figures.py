"""One look for all figures: sample grids, pictures side by side, curves, bars.

Figures are drawn without a display and without pyplot's global state. The palette is Okabe and
Ito's (2008), which colour-blind readers can tell apart; lines differ in marker as well.
"""

from __future__ import annotations

import functools
import itertools
import re
import sys
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from imagelab.setup.files import atomic_path
from imagelab.setup.terminal import tell_once

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage
    from matplotlib.typing import RcKeyType

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
CLASS_COLOURS = (*PALETTE, "#F0E442", "#999999", "#882255")  # ten, named in the picture as well
MARKERS = "osD^vPX"
DASHES = ("-", "--", "-.", (0, (1, 1)), (0, (5, 1, 1, 1, 1, 1)), (0, (3, 1)))
Numbers = Sequence[float] | torch.Tensor
STYLE: dict[RcKeyType, Any] = {
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.titley": 1,  # where it would come to stand anyway, after a long search
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "image.interpolation": "nearest",
    "text.parse_math": False,  # a $ in a name is a $
}


def new_figure(
    width: float, height: float, rows: int = 1, columns: int = 1, **more: Any
) -> tuple[Figure, np.ndarray]:
    """A figure of `width` × `height` inches and its axes, as (rows, columns) array."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    matplotlib.rcParams.update(STYLE)
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False, **more)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG. Letters that the usual font lacks come from another one that is installed;
    where none has them, boxes stand for them, which is said once."""
    with atomic_path(path) as temporary:

        def save() -> set[str]:
            """The letters that were missing."""
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                figure.savefig(
                    temporary,
                    dpi=110,
                    format="png",
                    bbox_inches="tight",
                    pad_inches=0.08,
                    metadata={"Software": None},
                )
            missing = set()
            for warning in caught:
                if glyph := re.match(r"Glyph (\d+) .* missing from", str(warning.message)):
                    missing.add(chr(int(glyph[1])))
                else:
                    warnings.warn_explicit(
                        warning.message, warning.category, warning.filename, warning.lineno
                    )
            return missing

        if missing := save():
            _take_other_font(figure, missing)
            if missing := save():
                letters = " ".join(sorted(missing))
                tell_once(f"No font here has these letters; boxes stand for them: {letters}")


def _take_other_font(figure, letters: set[str]) -> None:
    """Let all texts of a figure look for `letters`, which the usual font lacks, in another one."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.text import Text

    usual = FontProperties().get_family()
    other = FontProperties(fname=font_file("".join(letters))).get_name()
    for text in figure.findobj(Text):
        text.set_fontfamily([*usual, other])


@functools.cache
def font_file(letters: str) -> str:
    """The file of the first installed font that has most of these letters; the usual one has most."""
    from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font

    usual = findfont(FontProperties())

    def lacks(file: str) -> int:
        known = get_font(file).get_charmap()
        return sum(ord(letter) not in known for letter in letters if letter.isprintable())

    if lacks(usual) == 0:
        return usual
    plain = {
        font.name
        for font in fontManager.ttflist
        if font.style == "normal"
        and font.weight in (400, "normal")
        and not font.name.startswith("Last Resort")
    }
    found = [findfont(FontProperties(family=name)) for name in sorted(plain)]
    return min([usual, *found], key=lacks)


def grid(images: torch.Tensor, columns: int, scale: int = 2, gap: int = 2) -> np.ndarray:
    """Images (N, C, H, W) uint8, row by row, enlarged `scale` times, with `gap` pixels between.

    Returns (rows, width) or (rows, width, 3) uint8; a last incomplete row is filled with white.
    """
    n, c, h, w = images.shape
    rows = -(-n // columns)
    cells = torch.full((rows * columns, c, h + gap, w + gap), 255, dtype=torch.uint8)
    cells[:n, :, :h, :w] = images.cpu()
    cells[:n, :, h:, :], cells[:n, :, :, w:] = 160, 160
    sheet = cells.reshape(rows, columns, c, h + gap, w + gap).permute(0, 3, 1, 4, 2)
    sheet = sheet.reshape(rows * (h + gap), columns * (w + gap), c)[: -gap or None, : -gap or None]
    sheet = sheet.repeat_interleave(scale, 0).repeat_interleave(scale, 1).numpy()
    return sheet[:, :, 0] if c == 1 else sheet


def titled(sheet: np.ndarray, text: str, size: int = 16) -> np.ndarray:
    """A picture (H, W) or (H, W, 3) uint8 below a white strip with a line of `text`."""
    from PIL import Image, ImageDraw, ImageFont

    strip = Image.new("L", (sheet.shape[1], round(1.4 * size)), 255)
    font = ImageFont.truetype(font_file(text), size)
    ImageDraw.Draw(strip).text((2, 0), text, 0, font)
    strip = np.asarray(strip) if sheet.ndim == 2 else np.asarray(strip.convert("RGB"))
    return np.concatenate([strip, sheet])


def rgb(colour: str) -> tuple[int, int, int]:
    """'#0072B2' as red, green and blue from 0 to 255."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return red, green, blue


def as_picture(image: torch.Tensor) -> np.ndarray:
    """(C, H, W) in [0, 1] to (H, W) or (H, W, 3), for show_image."""
    picture = image.clamp(0, 1).permute(1, 2, 0).cpu().numpy()
    return picture[..., 0] if picture.shape[2] == 1 else picture


def show_image(axis, image: np.ndarray, title: str = "") -> None:
    """A picture with a title and no axes. Greys are shown from 0 to 1 (or to 255), unstretched."""
    high = 255 if image.dtype == np.uint8 else 1
    axis.imshow(image, cmap="gray", vmin=0, vmax=high)
    axis.set_axis_off()
    if title:
        axis.set_title(title)


def show_plane(axis, sheet: np.ndarray, values: torch.Tensor) -> None:
    """A square sheet of pictures, of which each belongs to two of the ascending `values` (side,)."""
    side = len(values)
    axis.imshow(sheet, "gray", vmin=0, vmax=255, extent=(0, side, 0, side))
    places, names = torch.arange(side) + 0.5, [f"{value:.1f}" for value in values.tolist()]
    few = slice(None, None, max(side // 6, 1))
    axis.set_xticks(places[few], names[few])
    axis.set_yticks(places[few], names[few])
    axis.grid(visible=False)


def name_rows(axes: np.ndarray, names: Sequence[str]) -> None:
    """Names to the left of rows of pictures that have no axes, in lines of at most 16 letters.

    The figure gets wider by as much.
    """
    longest = max(len(line) for name in names for line in textwrap.wrap(name, 16))
    figure = axes[0, 0].figure
    figure.set_figwidth(figure.get_figwidth() + 0.085 * longest)
    for axis, name in zip(axes[:, 0], names, strict=True):
        place = (0, 0.5), (-8, 0), "axes fraction", "offset points"
        axis.annotate(textwrap.fill(name, 16), *place, va="center", ha="right")


def plot_rows(
    rows: Mapping[str, torch.Tensor],
    columns: Sequence[str] = (),
    title: str = "",
    notes: Mapping[str, Sequence[str]] | None = None,
) -> Figure:
    """Rows of equally many pictures (N, C, H, W) uint8, each row with its name at the left.

    The names of the `columns`, if given, stand above them. `notes` has short texts for the pictures of
    some rows, in their upper left corners.
    """
    width = max(len(pictures) for pictures in rows.values())
    height = 0.98 * len(rows) + 0.25 * bool(columns) + 0.35 * bool(title)
    figure, axes = new_figure(0.9 * width, height, len(rows))
    for axis, (name, pictures) in zip(axes[:, 0], rows.items(), strict=True):
        show_image(axis, grid(pictures, columns=width, scale=2, gap=2))
        for k, note in enumerate((notes or {}).get(name, ())):
            place = 2 * k * (pictures.shape[3] + 2) + 2, 1
            look = {"va": "top", "fontsize": 9, "weight": "bold", "color": PALETTE[4]}
            axis.text(*place, note, **look)
    name_rows(axes, list(rows))
    for k, name in enumerate(columns):
        place = ((k + 0.5) / width, 1), (0, 3), "axes fraction", "offset points"
        axes[0, 0].annotate(name, *place, ha="center", va="bottom")
    if title:
        figure.suptitle(title)
    return figure


def plot_side_by_side(
    pictures: Mapping[str, np.ndarray], rows: int = 1, height: float = 3.0
) -> Figure:
    """Pictures (H, W[, 3]) under their titles, in `rows` rows."""
    columns = -(-len(pictures) // rows)
    first = next(iter(pictures.values()))
    width = max(height * 0.82 * first.shape[1] / first.shape[0], 0.75)
    figure, axes = new_figure(width * columns, height * rows, rows, columns)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, (name, picture) in zip(axes.flat, pictures.items(), strict=False):
        show_image(axis, picture, name)
    return figure


def plot_lines(
    axis,
    x: Numbers | Mapping[str, Numbers],
    lines: Mapping[str, Numbers],
    xlabel: str,
    ylabel: str,
    markers: bool = True,
    dashes: bool = False,
    legend: bool = True,
) -> None:
    """Named lines over `x`, or each over its own, with a legend. `dashes` tell lines apart that meet."""
    for k, (name, y) in enumerate(lines.items()):
        axis.plot(
            x[name] if isinstance(x, Mapping) else x,
            y,
            label=name,
            color=PALETTE[k % len(PALETTE)],
            linewidth=1.6,
            linestyle=DASHES[k % len(DASHES)] if dashes else "-",
            marker=MARKERS[k % len(MARKERS)] if markers else None,
            markersize=4.5,
        )
    axis.set_xlabel(xlabel)
    axis.set_ylabel(ylabel)
    if legend and len(lines) > 1:
        axis.legend()


def plot_matrix(
    axis,
    shares: torch.Tensor,
    names: Sequence[str],
    texts: Sequence[Sequence[str]] | None = None,
) -> AxesImage:
    """Shares (N, N) from 0 to 1 as colours, rows and columns named, a text in each cell.

    Returns what a colour bar needs.
    """
    shown = axis.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    axis.grid(visible=False)
    axis.set_xticks(range(len(names)), names)
    axis.set_yticks(range(len(names)), names)
    for i, row in enumerate(texts or ()):
        for j, text in enumerate(row):
            colour = "white" if shares[i, j] > 0.5 else "black"
            axis.text(j, i, text, ha="center", va="center", color=colour, fontsize=8)
    return shown


def log_scale(axis, direction: Literal["x", "y"] = "y") -> None:
    """A logarithmic axis with plain numbers at 1, 2 and 5 times the powers of ten.

    They stand at more places if the data reach over less than one power of ten, and at the powers alone
    if they reach over four or more.
    """
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axis.set(**{f"{direction}scale": "log"})
    low, high = axis.get_xlim() if direction == "x" else axis.get_ylim()
    ticks = axis.xaxis if direction == "x" else axis.yaxis
    subs = (1, 2, 5) if high > 10 * low else (1, 1.5, 2, 3, 5, 7)
    subs = (1,) if high > 1e4 * low else subs
    ticks.set_major_locator(LogLocator(subs=subs))
    ticks.set_major_formatter(StrMethodFormatter("{x:g}"))
    ticks.set_minor_formatter(NullFormatter())


def class_histogram(
    axis,
    shares: Mapping[str, Sequence[float]],
    classes: Sequence[str],
    surely: Mapping[str, Sequence[float]] | None = None,
) -> None:
    """Shares of the predicted classes as bars, one colour per set of samples.

    `surely` has those shares of the sets that are read surely: these parts of the bars are full, the
    others pale.
    """
    positions = np.arange(len(classes))
    width = 0.8 / len(shares)
    for k, (name, values) in enumerate(shares.items()):
        places, colour = positions + (k - (len(shares) - 1) / 2) * width, PALETTE[k]
        pale = 0.35 if surely else 1
        axis.bar(places, values, width, label=None if surely else name, color=colour, alpha=pale)
        if surely:
            axis.bar(places, surely[name], width, label=name, color=colour)
    axis.set_xticks(positions, classes)
    if max(map(len, classes)) > 2:
        axis.tick_params(axis="x", labelrotation=60)
    axis.set_xlabel("class that the classifier reads" + (" (full: surely)" if surely else ""))
    axis.set_ylabel("share of the images")
    axis.grid(axis="x", visible=False)
    axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(shares))


def plot_classes(axis, points: torch.Tensor, labels: torch.Tensor, classes: Sequence[str]) -> None:
    """Points (N, 2) coloured by their class, whose name stands among them.

    It stands at the point of the class from which half of the others are nearest, or beside it where
    names would meet.
    """
    span = (points.amax(dim=0) - points.amin(dim=0)).clamp(min=1e-6)
    found = labels.unique().tolist()
    places = []
    for label in found:
        own = points[labels == label]
        colour = CLASS_COLOURS[label % len(CLASS_COLOURS)]
        axis.scatter(*own.numpy().T, s=14, color=colour, edgecolors="#555555", linewidths=0.25)
        near = torch.cdist(own / span, own / span).median(dim=1).values
        places.append(own[near.argmin()] / span)
    for label, place in zip(found, apart(torch.stack(places)) * span, strict=True):
        box = {
            "facecolor": "white",
            "edgecolor": CLASS_COLOURS[label % len(CLASS_COLOURS)],
            "boxstyle": "round,pad=0.15",
        }
        look = {"ha": "center", "va": "center", "weight": "bold", "bbox": box}
        axis.text(*place.tolist(), classes[label], **look)


def apart(places: torch.Tensor, least: float = 0.06) -> torch.Tensor:
    """Places (N, 2), moved until no two are nearer to each other than `least`."""
    places = places.clone()
    for _ in range(100):
        still = True
        for i, j in itertools.combinations(range(len(places)), 2):
            line = places[j] - places[i]
            if (distance := line.norm()) < 0.99 * least:
                direction = line / distance if distance > 0 else torch.tensor([1.0, 0.0])
                step = direction * (least - distance) / 2
                places[i], places[j], still = places[i] - step, places[j] + step, False
        if still:
            break
    return places


def has_display() -> bool:
    """Whether matplotlib can open windows here."""
    from matplotlib import pyplot

    return pyplot.get_backend().lower() != "agg"


def show(paths: Sequence[Path]) -> None:
    """Open pictures in windows and wait until they are closed; a sentence where there is no display."""
    from matplotlib import pyplot

    if not has_display():
        print(
            "--show: there is no display here; the pictures are in the files above.",
            file=sys.stderr,
        )
        return
    with pyplot.rc_context({"figure.max_open_warning": 0}):  # a main job has more than 20
        for path in (p for p in paths if p.suffix == ".png"):
            pyplot.figure(path.name, layout="constrained")
            pyplot.imshow(pyplot.imread(path), cmap="gray")
            pyplot.axis("off")
    pyplot.show()
