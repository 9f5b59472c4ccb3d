"""The kernel cache: built once, waited for, cleaned up after. The compiler is a stand-in, DeepSpeed is real.

The stand-in compiles a tiny extension of the wanted name, so that everything but the minutes is as it would be.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness import kernel_builder, kernels
from harness.errors import UnsupportedError

COMPILER = r"""#!/bin/sh
# Called as c++ by torch, with -c for each source and -shared for the library.
case "$*" in
  *--version*|*-v*) exec /usr/bin/env g++ "$@" ;;
esac
{before}
name=$(echo "$*" | sed -n 's/.*TORCH_EXTENSION_NAME=\([a-z_]*\).*/\1/p')
out=$(echo "$*" | sed -n 's/.*-o \([^ ]*\).*/\1/p')
[ -n "$out" ] || exec /usr/bin/env g++ "$@"  # a question about the compiler
case " $* " in
  *" -shared "*) exec /usr/bin/env gcc -shared $(ls *.o | head -1) -o "$out" ;;
esac
include=$({python} -I -c 'import sysconfig; print(sysconfig.get_paths()["include"])')
cat > "$out.c" <<END
#include <Python.h>
static struct PyModuleDef m = {{PyModuleDef_HEAD_INIT, "$name"}};
PyMODINIT_FUNC PyInit_$name(void) {{ return PyModule_Create(&m); }}
END
exec /usr/bin/env gcc -fPIC -I"$include" -c "$out.c" -o "$out"
"""


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("OPTBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """Install the stand-in, with a line of shell that runs before each call."""

    def install(before=":"):
        path = tmp_path / "stand-in-c++"
        path.write_text(COMPILER.format(before=before, python=sys.executable))
        path.chmod(0o755)
        monkeypatch.setenv("CXX", str(path))
        (tmp_path / "sitecustomize.py").write_text("print('what is printed breaks nothing')\n")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    return install


def start(*names):
    return subprocess.Popen(
        [sys.executable, "-m", "harness.kernels", "ensure", *names],
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def running(text):
    """Processes whose command line holds the text."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes()
            state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if text.encode() in words and state != "Z":
            found.append(int(folder.name))
    return found


def test_a_missing_kernel_is_built_announced_and_found_again(cache, compiler):
    compiler('case " $* " in *" -g "*) echo debug information; exit 1;; esac')
    lines = []
    assert kernels.built("cpu_lion", "cpu") is None
    assert kernels.ensure(["cpu_lion"], lines.append, "cpu") == {"cpu_lion": None}
    file = kernels.built("cpu_lion", "cpu")
    assert file.is_relative_to(cache)
    assert "Compiling cpu_lion" in lines[0]
    assert "min" in lines[0]
    assert re.fullmatch(r"Compiled cpu_lion in \d+ s", lines[1])
    again = []
    assert kernels.ensure(["cpu_lion"], again.append, "cpu") == {"cpu_lion": None}
    assert again == []
    code = "from harness import kernels; print(kernels.load('cpu_lion', 'cpu').__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "DS_ACCELERATOR": "cpu", "PATH": "/nowhere"},  # no ninja, no compiler
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == str(file)


def test_a_failed_build_tells_where_the_compilers_output_is_and_the_others_go_on(cache, compiler):
    compiler('case "$*" in *cpu_adagrad*) echo no such instruction; exit 1;; esac')
    lines = []
    errors = kernels.ensure(["cpu_adagrad", "cpu_lion"], lines.append, "cpu")
    assert errors["cpu_lion"] is None
    assert kernels.built("cpu_lion", "cpu")
    assert kernels.built("cpu_adagrad", "cpu") is None
    log = Path(errors["cpu_adagrad"].rpartition("output: ")[2])
    assert "no such instruction" in log.read_text()
    assert errors["cpu_adagrad"] in lines


def test_sources_that_cannot_be_one_are_compiled_one_by_one(cache, compiler, tmp_path):
    one = kernels.kernel_folder("cpu") / "cpu_lion.cpp"
    compiler(f'case "$*" in *{one}*) touch {tmp_path}/tried; exit 1;; esac')
    lines = []
    assert kernels.ensure(["cpu_lion"], lines.append, "cpu") == {"cpu_lion": None}
    assert [line.partition(" ")[0] for line in lines] == ["Compiling", "Compiled"]
    assert (tmp_path / "tried").exists()
    assert kernels.built("cpu_lion", "cpu")


@pytest.mark.skipif(kernel_builder.at_a_time() < 2, reason="this machine compiles one at a time")
def test_kernels_are_compiled_side_by_side(cache, compiler, tmp_path):
    """Each compiler waits until the other one has started."""
    started = tmp_path / "started"
    started.mkdir()
    name = "$(echo $* | sed -n 's/.*TORCH_EXTENSION_NAME=\\([a-z_]*\\).*/\\1/p')"
    wait = f"while [ $(ls {started} | wc -l) -lt 2 ]; do sleep 0.1; done"
    compiler(f'case " $* " in *" -c "*) touch {started}/{name}; {wait};; esac')
    assert set(kernels.ensure(["cpu_adagrad", "cpu_lion"], print, "cpu").values()) == {None}


def test_a_second_process_says_that_it_waits_and_for_whom(cache, compiler, tmp_path):
    started = tmp_path / "started"
    compiler(f"touch {started}; while [ ! -e {tmp_path / 'go'} ]; do sleep 0.1; done")
    first = start("cpu_lion")
    try:
        wait_for(started.exists)
        second = start("cpu_lion")
        line = second.stderr.readline()
        assert "Waiting for another optbench process" in line
        assert f"process {first.pid} on" in line
        (tmp_path / "go").touch()
        assert "Compiled cpu_lion" in first.communicate(timeout=120)[1]
        assert second.communicate(timeout=120)[1] == ""  # nothing left to compile
        assert (first.returncode, second.returncode) == (0, 0)
    finally:
        (tmp_path / "go").touch()
        first.kill()


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_build_leaves_no_process_and_its_lock_is_cleared(cache, compiler, tmp_path, ending):
    marker = tmp_path / "compiling"
    # Not when torch asks for its version: ninja starts the others, each in a process group of its own.
    compiler(f'case " $* " in *" -c "*) echo $$ > {marker}; exec sleep 87.5;; esac')
    first = start("cpu_lion")
    wait_for(marker.exists)
    folder = kernels.kernel_folder("cpu") / "cpu_lion"
    assert (folder / "lock").exists()
    os.kill(first.pid, ending)
    first.communicate(timeout=60)
    wait_for(lambda: not running("sleep\x0087.5") and not running(f"harness.kernel_builder\x00{first.pid}"))
    assert kernels.built("cpu_lion", "cpu") is None
    compiler()
    lines = []
    assert kernels.ensure(["cpu_lion"], lines.append, "cpu") == {"cpu_lion": None}
    assert any("stale lock" in line and str(folder) in line for line in lines)


def test_a_half_written_stamp_counts_as_not_built(cache):
    folder = kernels.kernel_folder("cpu") / "cpu_adam"
    folder.mkdir(parents=True)
    for content in ("", "{", "[]", '{"file": "/nowhere/cpu_adam.so"}'):
        (folder / "built.json").write_text(content)
        assert kernels.built("cpu_adam", "cpu") is None


def test_a_rank_without_the_kernel_is_told_how_to_build_it(cache):
    with pytest.raises(UnsupportedError, match=r"python -m harness\.kernels ensure cpu_adam"):
        kernels.load("cpu_adam", "cpu")


def test_unknown_names_and_devices_are_errors_not_exceptions(cache):
    errors = kernels.ensure(["cpu_adma", "fused_lamb"], print, "cpu")
    assert "cpu_adam" in errors["cpu_adma"]
    assert errors["fused_lamb"] == "DeepSpeed has no fused_lamb kernel for cpu"


def test_a_cache_that_is_a_file_is_an_error_with_a_remedy(cache):
    cache.write_text("")
    assert "set OPTBENCH_CACHE" in kernels.ensure(["cpu_adam"], print, "cpu")["cpu_adam"]


def test_the_key_holds_what_a_kernel_depends_on(monkeypatch):
    import torch

    name = kernels.kernel_folder("cpu").name
    assert torch.__version__ in name
    assert ("cxx11" if torch.compiled_with_cxx11_abi() else "pre-cxx11") in name
    assert sys.implementation.cache_tag in name
    assert kernels.kernel_folder("cuda").name != name


def test_the_module_imports_neither_torch_nor_deepspeed():
    code = """if True:
        import json, sys
        from harness import kernels
        kernels.built("cpu_adam")
        print(json.dumps([module in sys.modules for module in ("torch", "deepspeed")]))
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [False, False]
