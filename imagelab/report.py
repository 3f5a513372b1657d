"""`report.html`: one self-contained page made from the `results.json` files of the demos."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

from imagelab.files import atomic_path
from imagelab.results import metric_text, number

TEMPLATE = Path(__file__).with_name("report.html.jinja")
MAX_BYTES = 7_500_000  # of embedded pictures, as base64, for every four demos


def write_report(path: Path, root: Path, rows: list[dict[str, Any]], facts: dict[str, Any]) -> None:
    """Write the page. `rows` are the driver's table: name, status, seconds, error, folder, figure, n.

    A demo without results is shown with its error only. Pictures are embedded, large ones as WebP, in
    the order of the demos; those that no longer fit into the limit are named with their path.
    """
    import jinja2

    room = int(MAX_BYTES * max(len(rows) / 4, 1))
    demos = []
    for row in rows:
        demo = {**row, "anchor": row["name"].replace("_", "-"), "result": None}
        source = root / (row["folder"] or "") / "results.json"
        if row["folder"] and row["status"] == "done" and source.is_file():
            demo["result"] = json.loads(source.read_text(encoding="utf-8"))
            for entry in demo["result"]["files"]:
                if entry["featured"]:
                    entry.update(_embed(source.parent / entry["path"], room))
                    room -= len(entry["data"])
        demos.append(demo)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATE.parent), autoescape=True, trim_blocks=True,
        lstrip_blocks=True, undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters.update(number=number, metric=metric_text)
    page = environment.get_template(TEMPLATE.name).render(
        demos=demos, facts=facts, models=model_rows(demos)
    )
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


MODEL_COLUMNS = ("Fréchet distance", "coverage", "rarest class", "milliseconds per sample")


def model_rows(demos: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every demo that draws samples: its anchor and title, and its figures of MODEL_COLUMNS.

    Only demos of one and the same judge are put together: other distances are not comparable.
    """
    judged = [demo for demo in demos if demo["result"] and demo["result"]["judge"]]
    judged = [demo for demo in judged if MODEL_COLUMNS[0] in demo["result"]["metrics"]]
    return [
        {"anchor": demo["anchor"], "title": demo["result"]["title"].split(":")[0],
         "judge": demo["result"]["judge"],
         "n": demo["result"]["metrics"][MODEL_COLUMNS[0]]["n"],
         "figures": [demo["result"]["metrics"].get(name) for name in MODEL_COLUMNS]}
        for demo in judged if demo["result"]["judge"] == judged[0]["result"]["judge"]
    ]  # fmt: skip


def _embed(path: Path, room: int) -> dict[str, Any]:
    """A picture as a data URL with its size in pixels; an empty URL where it is gone or too large."""
    from PIL import Image

    if not path.is_file():
        return {"data": "", "width": 0, "height": 0}
    with Image.open(path) as picture:
        width, height = picture.size
        raw, kind = path.read_bytes(), path.suffix[1:]
        if kind == "png" and len(raw) > 60_000:
            buffer = io.BytesIO()
            picture.convert("RGB").save(buffer, format="WEBP", quality=90)
            if len(buffer.getvalue()) < len(raw):
                raw, kind = buffer.getvalue(), "webp"
    data = f"data:image/{kind};base64,{base64.b64encode(raw).decode()}"
    return {"data": data if len(data) <= room else "", "width": width, "height": height}
