"""The compiled library as it is shipped: which instructions stand where, what it links, what importing it drags in.

A function that two translation units share could be linked from the one built for the widest instruction set, and crash
older machines. So wide registers may appear in the namespaces of the sets that own them, and nowhere else.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from fastvoc import _C

LIBRARY = Path(_C.__file__)
ROOT = Path(__file__).parent.parent
WIDE = {"ymm": {"avx2", "avx512", "avx512bf16", "amx"}, "zmm": {"avx512", "avx512bf16", "amx"}, "tmm": {"amx"}}
X86 = any(row[0] == "avx2" for row in _C.cpu_isas())
needs_binutils = pytest.mark.skipif(
    not (shutil.which("objdump") and shutil.which("nm") and X86), reason="needs binutils and an x86-64 build"
)


def output_of(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@cache
def code_by_function() -> dict[str, str]:
    """Demangled function name -> its disassembly."""
    functions, name = {}, None
    for line in output_of("objdump", "-d", "-C", "--no-show-raw-insn", str(LIBRARY)).splitlines():
        header = re.match(r"[0-9a-f]{8,} <(.*)>:$", line)
        if header:
            name = header[1]
        elif name:
            functions.setdefault(name, []).append(line)
    code = {name: "\n".join(lines) for name, lines in functions.items()}
    if not any("fastvoc::baseline::" in name for name in code):
        pytest.skip("the library is stripped of its symbols")
    return code


def namespace_of(function: str) -> str:
    """The instruction set that a function belongs to, or an empty string."""
    found = re.search(r"fastvoc::(baseline|avx512bf16_emulated|amx_emulated|avx512bf16|avx512|avx2|amx)::", function)
    return found[1] if found else ""


@needs_binutils
@pytest.mark.parametrize("register", WIDE)
def test_wide_registers_stay_in_their_namespaces(register):
    users = {name for name, code in code_by_function().items() if f"%{register}" in code}
    outside = [name for name in users if namespace_of(name) not in WIDE[register]]
    assert users and not outside, outside[:5]


@needs_binutils
@pytest.mark.parametrize(
    ("isa", "instruction"),
    [
        ("avx512bf16", "vdpbf16ps"), ("amx", "tdpbf16ps"), ("avx512", "vfmadd...ps .*%zmm"),
        ("avx2", "vfmadd...ps .*%ymm"),
    ],
)
def test_the_fast_instructions_are_there(isa, instruction):
    """And not a silent scalar fallback."""
    code = "\n".join(c for name, c in code_by_function().items() if namespace_of(name) == isa)
    assert len(re.findall(instruction, code)) > 10


@needs_binutils
def test_generation_multiplies_on_tiles():
    """Every product of a bf16 model, which is inlined into what calls it, has the tile code."""
    users = [n for n, c in code_by_function().items() if namespace_of(n) == "amx" and "tdpbf16ps" in c]
    assert any("Generator<unsigned short>" in name or "product" in name for name in users), users


@needs_binutils
def test_no_weak_symbols_in_the_units_of_an_instruction_set():
    objects = [p for p in ROOT.glob("build/**/*.o") if re.search(r"cpu_\w+\.dir", str(p))]
    if not objects:
        pytest.skip("no build folder")
    for path in objects:
        symbols = output_of("nm", "-C", str(path)).splitlines()
        weak = [line for line in symbols if re.match(r"[0-9a-f ]{16,} [WVu] ", line)]
        assert not weak, (path.name, weak[:3])


@pytest.mark.skipif(not shutil.which("readelf"), reason="needs readelf")
def test_links_the_system_only():
    needed = re.findall(r"NEEDED.*\[(.*?)\]", output_of("readelf", "-d", str(LIBRARY)))
    system = ("libstdc++.so", "libm.so", "libgcc_s.so", "libc.so", "libpthread.so", "ld-linux")
    assert needed and [name for name in needed if not name.startswith(system)] == []


IMPORT = """
import sys, time, torch
before, events = set(sys.modules), []
watched = ("socket.connect", "socket.getaddrinfo", "ctypes.dlopen", "subprocess.Popen", "os.mkdir", "os.rename")
def watch(name, args):
    if name in watched or (name == "open" and str(args[0]).startswith("/dev/nvidia")):
        events.append((name, str(args)))
sys.addaudithook(watch)
start = time.process_time()
{what}
seconds = time.process_time() - start
print(sorted(set(sys.modules) - before), events, torch.cuda.is_initialized(), seconds, sep="\\n")
"""


def watched(what: str) -> tuple[list[str], list, bool, float]:
    """Modules, events, whether CUDA was woken, and seconds of CPU time, of a statement in a process that has torch."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORT.format(what=what)], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )  # fmt: skip
    modules, events, cuda, seconds = (ast.literal_eval(line) for line in done.stdout.splitlines())
    return modules, events, cuda, seconds


def test_importing_is_light():
    """Beside torch it loads fastvoc and next to nothing, opens no connection and no CUDA library, starts and writes nothing.

    What else fastvoc may need comes when it is asked for; so the import takes some 0.06 s of CPU time over torch's.
    """
    for _ in range(3):  # the first import after a change compiles the files, and a busy machine counts some of others' time
        modules, events, cuda, seconds = watched("import fastvoc")
        roots = {name.partition(".")[0] for name in modules}
        assert roots - {"fastvoc"} <= sys.stdlib_module_names, sorted(roots)
        late = [name for name in modules if re.match(r"fastvoc\.(cli|demo|kernels|report|training)\b", name)]
        assert "fastvoc.models.wavenet" in modules and late == []
        assert events == [] and not cuda
        if seconds <= 0.2:
            break
    assert seconds <= 0.2


def test_the_watch_sees_what_an_import_must_not_do(tmp_path):
    """So that the test above can fail."""
    heavy = (
        "import fastvoc.report, ctypes, os, socket, subprocess, yaml; ctypes.CDLL(None); subprocess.run(['true']); "
        f"os.mkdir({str(tmp_path / 'x')!r}); socket.socket().connect_ex(('127.0.0.1', 9)); "
        "sys.audit('open', '/dev/nvidia0', 'r', 0); "
        "[None for _ in range(20_000_000)]"
    )
    modules, events, _, seconds = watched(heavy)
    assert {"yaml", "fastvoc.report"} <= set(modules) and seconds > 0.2
    assert {name for name, _ in events} == {"ctypes.dlopen", "subprocess.Popen", "os.mkdir", "socket.connect", "open"}
