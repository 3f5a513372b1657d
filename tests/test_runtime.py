from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from torch import nn

import mlp_diffusion
from imagelab.setup.runtime import (
    UserError,
    channels_last,
    explain,
    generator,
    has_fast_bfloat16,
    machine,
    pick_device,
)
from imagelab.techniques.unet import UNet
from studies import dcgan

CPU = torch.device("cpu")


def test_a_stream_for_each_seed_and_purpose():
    first = torch.rand(8, generator=generator(0, "noise"))
    torch.manual_seed(77)
    torch.rand(3, generator=generator(0, "other"))
    assert torch.equal(first, torch.rand(8, generator=generator(0, "noise")))
    assert not torch.equal(first, torch.rand(8, generator=generator(0, "other")))
    assert not torch.equal(first, torch.rand(8, generator=generator(1, "noise")))


def test_devices():
    assert pick_device("cpu") == CPU
    torch.empty(1, device=pick_device("auto"))


def test_mps_is_not_taken(monkeypatch):
    """It has no float64."""
    mps = torch.device("mps")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: mps)
    assert pick_device("auto") == CPU
    with pytest.raises(UserError, match="float64"):
        pick_device("mps")


@pytest.mark.parametrize("name", ["toaster", "cuda:99", "cpu:x", ""])
def test_a_device_that_is_not_there(name):
    with pytest.raises(UserError, match=f"--device {name} cannot be used here") as error:
        pick_device(name)
    assert "\n" not in str(error.value)


def test_the_hardware_in_words():
    assert not has_fast_bfloat16(torch.device("mps"))
    assert machine(CPU).startswith(f"cpu, {torch.get_num_threads()} threads")


@pytest.mark.parametrize(("amx", "bf16"), [(False, False), (True, True), (False, True)])
def test_a_processor_is_asked_for_bfloat16(monkeypatch, amx, bf16):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
    assert has_fast_bfloat16(CPU) == bf16
    assert machine(CPU).endswith(", bfloat16") == bf16


@pytest.mark.parametrize("name", ["MLP DDPM", "U-Net", "DCGAN's G", "DCGAN's D"])
def test_bfloat16_answers_nearly_the_same_in_float32(monkeypatch, name):
    """Taken where the hardware is made for it; every processor can compute in it."""
    torch.manual_seed(0)
    shape, t = (1, 28, 28), torch.arange(8) * 6
    x, z = torch.rand(8, *shape), torch.randn(8, 100)
    ddpm = mlp_diffusion.build(vars(mlp_diffusion.Config()), shape)
    unet = UNet(1, widths=(8, 16))
    nn.init.normal_(unet.last.weight)  # it starts at 0
    G, D = dcgan.build(dcgan.Config(), shape, CPU)
    network = {
        "MLP DDPM": lambda: ddpm(x.flatten(1), t),
        "U-Net": lambda: unet(x, t / 50),
        "DCGAN's G": lambda: G(z),
        "DCGAN's D": lambda: D.logits(x),
    }[name]
    answers = []
    for fast in (False, True):
        monkeypatch.setattr(
            "imagelab.setup.runtime.has_fast_bfloat16", lambda _device, fast=fast: fast
        )
        with torch.no_grad():
            answers.append(network())
    exact, fast = answers
    assert fast.dtype == torch.float32
    # D's logit is a sum of 6,272 terms that nearly cancel: with ten seeds it was off by 0.4 to 3 %.
    assert 0 < (fast - exact).norm() / exact.norm() < (0.05 if name == "DCGAN's D" else 0.02)


def test_channels_last_is_the_order_in_memory_and_no_other_numbers():
    network = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4))
    before = [p.detach().clone() for p in network.parameters()]
    moved = channels_last(network, "cpu")
    assert moved is network and moved[0].weight.stride() == (18, 1, 6, 2)
    assert all(map(torch.equal, before, moved.parameters()))


def test_errors_that_the_user_can_mend():
    assert explain(UserError("Do this.")) == ("Do this.", 2)
    full = OSError(errno.ENOSPC, "No space left on device", "/a/b.png")
    assert explain(full) == ("No space left on device: /a/b.png.", 2)
    assert explain(OSError("odd")) == ("odd.", 2)
    with pytest.raises(RuntimeError) as on_the_cpu:
        torch.empty(2**60, dtype=torch.uint8)
    for error in (MemoryError(), torch.OutOfMemoryError(), on_the_cpu.value):
        sentence, status = explain(error)
        assert "--batch-size" in sentence and status == 2


@pytest.mark.parametrize("text", ["wrong\nsecond line", ""])
def test_errors_of_ours_point_to_debug(text):
    sentence, status = explain(ValueError(text))
    assert status == 1 and "--debug" in sentence and "ValueError" in sentence
    assert text.split("\n")[0] in sentence and "\n" not in sentence


# --- from the command line to the exit status -----------------------------------------------------


SCRIPT = """
import os, signal, sys, time
from types import SimpleNamespace
from imagelab.setup.command import command_line
from imagelab.setup.runtime import UserError
from imagelab.setup.settings import Settings

def fail(error):
    raise error

ACTS = {
    "nothing": lambda: None,
    "wrong input": lambda: fail(UserError("Do this.")),
    "debugged": lambda: fail(UserError("Do this.")),
    "ctrl-c": lambda: fail(KeyboardInterrupt()),
    "fault of ours": lambda: fail(ValueError("odd")),
    "lost": lambda: (lose(lambda: os.kill(os.getpid(), signal.SIGINT)), time.sleep(60)),
    "lost at the end": lambda: lose(lambda: os.kill(os.getpid(), signal.SIGINT)),
    "become another error": lambda: change(lambda: os.kill(os.getpid(), signal.SIGINT)),
    "sigterm": lambda: os.kill(os.getpid(), signal.SIGTERM),
}

def lose(act):
    "As a destructor or a callback from C loses an exception."
    class Lost:
        def __del__(self):
            act()
    Lost()

def change(act):
    try:
        act()
    except KeyboardInterrupt:
        raise RecursionError("half imported")

for name, act in ACTS.items():
    def run(config):
        act()
        return SimpleNamespace(print_summary=lambda: print("done"), show=False, exit_status=0)

    sys.argv = ["demo.py", *(["--debug"] if name == "debugged" else [])]
    try:
        command_line(Settings, run, "A demo.")
    except SystemExit as end:
        if name == "sigterm":
            raise
        print(f"=== {end.code}")
        print("===", file=sys.stderr)
"""


LOST = ["lost", "lost at the end", "become another error"]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> dict[str, tuple[int, list[str], list[str]]]:
    """For each act of SCRIPT: exit status, lines of stdout, lines of stderr.

    One process does them all, because importing torch takes seconds; the last one ends it.
    """
    script = tmp_path_factory.mktemp("script") / "demo.py"
    script.write_text(SCRIPT, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    out, statuses = [], []
    errors = [part.splitlines() for part in done.stderr.split("===\n")]
    names = ["nothing", "wrong input", "debugged", "ctrl-c", "fault of ours", *LOST, "sigterm"]
    for line in [*done.stdout.splitlines(), f"=== {done.returncode}"]:
        if line.startswith("==="):
            statuses.append((int(line[4:]), out))
            out = []
        else:
            out.append(line)
    return {
        name: (status, lines, complaint)
        for name, (status, lines), complaint in zip(names, statuses, errors, strict=True)
    }


def test_a_run_that_ends_well(outcomes):
    assert outcomes["nothing"] == (0, ["done"], [])


def test_wrong_input_is_one_line_and_status_2(outcomes):
    assert outcomes["wrong input"] == (2, [], ["demo.py: Do this."])


def test_debug_shows_the_traceback(outcomes):
    status, _, lines = outcomes["debugged"]
    assert status == 2 and lines[-1] == "demo.py: Do this."
    assert lines[0].startswith("Traceback") and any("in run" in line for line in lines)


@pytest.mark.parametrize(
    ("name", "expected"), [("ctrl-c", 130), ("sigterm", 143), *((name, 130) for name in LOST)]
)
def test_a_stopped_run_is_told_in_a_line(outcomes, name, expected):
    status, out, lines = outcomes[name]
    assert status == expected and out == []
    assert lines == ["", f"demo.py: {'stopped' if expected == 130 else 'terminated'}."]


def test_a_fault_of_ours_is_one_line_and_status_1(outcomes):
    status, _, lines = outcomes["fault of ours"]
    assert status == 1 and len(lines) == 1
    assert "ValueError: odd" in lines[0] and "--debug" in lines[0]


ADAM = """
import sys
import torch
from imagelab.setup.runtime import prepare
if len(sys.argv) > 1:
    prepare(0, "cpu")
torch.manual_seed(0)
layer = torch.nn.Linear(3, 2)
adam = torch.optim.Adam(layer.parameters(), lr=0.1, fused=True)
for _ in range(3):
    adam.zero_grad()
    layer(torch.ones(2, 3)).square().sum().backward()
    adam.step()
adam.load_state_dict(adam.state_dict())
print(layer.weight.tolist(), adam.state_dict()["state"][0]["step"].item())
print("torch._dynamo" in sys.modules)
"""


def test_adam_does_without_the_compiler():
    """It steps as torch's own does, to the bit, and the compiler stays on the disk."""
    outcomes = [
        subprocess.run(
            [sys.executable, "-c", ADAM, *arguments], capture_output=True, text=True, check=True,
            cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        ).stdout.splitlines()
        for arguments in ((), ("prepared",))
    ]  # fmt: skip
    assert outcomes[0][0] == outcomes[1][0]
    assert [loaded for _, loaded in outcomes] == ["True", "False"]
