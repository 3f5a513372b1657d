from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
import textwrap

import pytest
from conftest import ROOT, run_here

import advanced_image_processing as driver

# Runs a script as `python SCRIPT` or `python -m SCRIPT` does, and says at the end what was imported.
PROBE = """
import runpy, sys
script, *arguments = sys.argv[1:]
sys.argv = [script.split(".")[-1] + ".py", *arguments]
try:
    if "." in script or script == "benchmarks":
        runpy.run_module(script, run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(f"{ROOT}/{script}.py", run_name="__main__")
except SystemExit as end:
    slow = [name for name in ("torch", "torchvision", "matplotlib") if name in sys.modules]
    print(end.code or 0, slow, file=sys.stderr)
""".replace("{ROOT}", str(ROOT))
STUDIES = [f"studies.{name}" for name in driver.STUDIES]
COMMANDS = [
    ("studies.denoising_autoencoder", "denoise"), ("studies.denoising_autoencoder", "photographs"),
    ("studies.denoising_autoencoder", "compare"),
    ("studies.detection", "predict"), ("studies.inpainting", "inpaint"),
    ("studies.segmentation", "predict"),
]  # fmt: skip
CALLS = [
    *((script, "--help") for script in ["advanced_image_processing", *driver.DEMOS, *STUDIES]),
    *((*command, "-h") for command in COMMANDS), ("advanced_image_processing", "--list"),
    ("benchmarks.faults", "--help"), ("gan_mnist", "--tyro-print-completion", "bash"),
]  # fmt: skip


@pytest.mark.parametrize("call", CALLS, ids=" ".join)
def test_a_question_is_answered_without_torch_as_with_it(call):
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *call], cwd=ROOT, capture_output=True, encoding="utf-8",
        check=True, env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"},
    )  # fmt: skip
    assert done.stderr == "0 []\n"
    script, *arguments = call
    shown, _ = run_here(script, *arguments)  # with torch
    name, own = script.split(".")[-1], f"{script}.py"
    assert done.stdout.strip() == shown.replace(own, f"{name}.py").strip()


def answer(folder, script: str, **others: str) -> str:
    """What a process prints that lets `answer` read `script`, a file beside the modules `others`."""
    for name, text in {"lesson": script, **others}.items():
        (folder / f"{name}.py").write_text(textwrap.dedent(text), encoding="utf-8")
    code = f"""
        import pathlib, sys, types
        from imagelab.setup import without_torch
        sys.path.insert(0, {str(folder)!r})
        script = types.ModuleType("__main__")
        script.__file__ = {str(folder / "lesson.py")!r}
        without_torch.answer(script, pathlib.Path({str(folder)!r}))
        print("after:", "parts" in sys.modules, len(sys.meta_path))
        import parts
        print(hasattr(parts, "Net"), "torch" in sys.modules)
    """
    code = f"import sys\nprint(len(sys.meta_path))\n{textwrap.dedent(code)}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip
    return done.stdout


def test_what_needs_torch_is_left_out_and_comes_back(tmp_path):
    script = '''
        """Doc."""
        from __future__ import annotations
        import torch
        from parts import Net, size
        class G(torch.nn.Module): ...
        @torch.no_grad()
        def draw(): ...
        def run(x: torch.Tensor): ...
        print(sorted(n for n in ("torch", "Net", "size", "G", "draw", "run") if n in globals()))
        print(__doc__, size)
    '''
    parts = "import torch\nsize = 3\nclass Net(torch.nn.Module): ...\n"
    before, *lines = answer(tmp_path, script, parts=parts).splitlines()
    assert lines == ["['run', 'size']", "Doc. 3", f"after: False {before}", "True True"]
    assert not (tmp_path / "__pycache__" / "lesson.pyc").exists()


def test_a_module_that_fails_otherwise_is_not_passed_over(tmp_path):
    with pytest.raises(subprocess.CalledProcessError):
        answer(tmp_path, "1 / 0\n", parts="import torch\nNet = 1\n")


@pytest.mark.parametrize("setting", ["pi: float = torch.pi", "pi: Number = 3.14"])
def test_where_settings_need_torch_the_script_answers_with_it(setting, tmp_path):
    """A copy of the project with a script of that kind."""
    shutil.copytree(ROOT / "imagelab", tmp_path / "imagelab")
    (tmp_path / "odd.py").write_text(
        textwrap.dedent('''
        """An odd one."""
        from __future__ import annotations
        from imagelab.setup.command import command_line
        from dataclasses import dataclass
        import torch
        from imagelab.setup.settings import Common

        Number = {torch.pi: float}[torch.pi]

        @dataclass(frozen=True)
        class Config(Common):
            SETTING
            """A setting."""

        if __name__ == "__main__":
            command_line(Config, print, __doc__)
    ''').replace("SETTING", setting)
    )
    done = subprocess.run([sys.executable, str(tmp_path / "odd.py"), "--help"], capture_output=True,
                          encoding="utf-8", check=True)  # fmt: skip
    assert "--pi FLOAT" in done.stdout and "3.14" in done.stdout


def test_every_script_is_called_here():
    scripts = {importlib.import_module(call[0]).__name__ for call in CALLS}
    assert {*driver.DEMOS, *STUDIES} <= scripts
