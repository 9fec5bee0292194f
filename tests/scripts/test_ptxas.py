"""bench/ptxas.py on recorded output with planted faults, and on the kernels of this tree's build."""

import json
import re

import pytest

from bench import ptxas
from stdc_fast import _native
from stdc_fast.backends.cuda.tiles import THREAD
from stdc_fast.errors import UserError

STATIC = "static shared memory, which launches do not reckon with"
SPACE = "_ZN4stdc3gpu44_GLOBAL__N__b79ee923_7_conv_cu_9d543fe3_6419"
CONV = SPACE + "11conv_kernelINS0_6half_tENS0_12CompiledFormILi9ELi1ELi1ELi4ELi1EEEEEvNS1_6ParamsE"
GATE = "_ZN4stdc3gpu11gate_kernelENS0_8GateArgsE"
REPORT = f"""ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '{CONV}' for 'sm_80'
ptxas info    : Function properties for {CONV}
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 116 registers, used 1 barriers, 712 bytes cmem[0], 8 bytes cmem[2]
ptxas info    : Compile time = 234.493 ms
ptxas info    : Compiling entry function '{GATE}' for 'sm_80'
ptxas info    : Function properties for {GATE}
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 46 registers, used 1 barriers, 456 bytes cmem[0]
conv.cu(6): warning #177-D: variable "unused" was declared but never referenced
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '{CONV}' for 'sm_90a'
ptxas info    : Function properties for {CONV}
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 120 registers, used 1 barriers
"""
SASS = f"""
Fatbin elf code:
================
arch = sm_80

	code for sm_80
	.target	sm_80

		Function : {CONV}
	.headerflags	@"EF_CUDA_SM80 EF_CUDA_VIRTUAL_SM(EF_CUDA_SM80)"
        /*0000*/                   IMAD.MOV.U32 R1, RZ, RZ, c[0x0][0x28] ;   /* 0x00000a00ff017624 */
                                                                             /* 0x000fc600078e00ff */
        /*0010*/                   LDGSTS.E.BYPASS.128 [R5], [R2.64], P0 ;   /* 0x0000000002057fae */
        /*0020*/              @!P0 LDGSTS.E.BYPASS.128.ZFILL [R5], [R2.64] ; /* 0x0000000002057fae */
        /*0030*/                   LDGDEPBAR ;                               /* 0x00000000000079af */
        /*0040*/                   DEPBAR.LE SB0, 0x1 ;                      /* 0x000080400000791a */
        /*0050*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;             /* 0x0000000000007b1d */
        /*0060*/                   LDSM.16.M88.4 R4, [R8] ;                  /* 0x000000000804783b */
        /*0070*/                   HMMA.16816.F32 R12, R4, R10, R12 ;        /* 0x0000000a040c723c */
        /*10080*/             @UP0 UIADD3 UR4, UR4, 0x1, URZ ;               /* 0x0000000104047890 */
		..........


		Function : {GATE}
	.headerflags	@"EF_CUDA_SM80 EF_CUDA_VIRTUAL_SM(EF_CUDA_SM80)"
        /*0000*/                   EXIT ;                                    /* 0x000000000000794d */
		..........
"""


@pytest.fixture
def build(tmp_path, monkeypatch):
    """A build folder with one object, and a cuobjdump that shows the recorded instructions."""
    (tmp_path / "cuda").mkdir()
    (tmp_path / "cuda/conv-f16.o").write_text("")
    (tmp_path / "cuda/conv-f16.o.ptxas").write_text(REPORT)
    (tmp_path / "cuda/old.o.ptxas").write_text("of a source that is no more")
    ninja = "build cuda/conv-f16.o | cuda/conv-f16.o.ptxas: cuda ../../csrc/cuda/conv.cu\n"
    (tmp_path / "build.ninja").write_text(f"rule cuda\n  command = nvcc\n{ninja}build _C.so: link\n")
    dump(tmp_path, monkeypatch, SASS)
    return tmp_path


def dump(folder, monkeypatch, sass):
    (folder / "sass").write_text(sass)
    tool = folder / "cuobjdump"
    tool.write_text(f'#!/bin/sh\n[ "$1 $2 $3" = "-sass -arch sm_80" ] && cat {folder}/sass\n')
    tool.chmod(0o755)
    monkeypatch.setattr(ptxas, "find_cuobjdump", lambda: str(tool))


def found(folder):
    return ptxas.problems(ptxas.read(folder, ("sm_80",)))


def test_what_is_read(build):
    conv, conv90, gate = rows = ptxas.read(build, ("sm_80",))
    assert ptxas.problems(rows) == []
    names = {
        "kernel": "conv_kernel<half_t, CompiledForm<9, 1, 1, 4, 1>>",
        "base": "conv",
        "object": "conv-f16",
    }
    report = {"arch": "sm_80", "registers": 116, "stack": 0, "spill_stores": 0, "spill_loads": 0}
    memory = {"shared": 0, "constant": 720}
    instructions = {"HMMA": 1, "IMMA": 0, "HGMMA": 0, "LDGSTS": 2, "LDSM": 1, "LDL": 0, "STL": 0, "BAR": 1}
    instructions |= {"ACQBULK": 0, "PREEXIT": 0}
    assert conv == names | report | memory | instructions
    assert (conv90["arch"], conv90["registers"]) == ("sm_90a", 120) and "HMMA" not in conv90
    assert (gate["kernel"], gate["base"], gate["BAR"]) == ("gate_kernel", "gate", 0)


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("0 bytes spill stores, 0", "16 bytes spill stores, 8", "16 bytes of spill stores, 8 of spill loads"),
        ("0 bytes stack", "256 bytes stack", "a stack frame of 256 bytes"),
        ("Used 116", "Used 129", "129 registers, the budget is 128"),
        ("1 barriers, 712", "1 barriers, 1024 bytes smem, 712", f"1024 bytes of {STATIC}"),
    ],
)
def test_faults_in_the_report(build, old, new, problem):
    (build / "cuda/conv-f16.o.ptxas").write_text(REPORT.replace(old, new, 1))
    assert found(build) == [
        f"conv-f16: conv_kernel<half_t, CompiledForm<9, 1, 1, 4, 1>> for sm_80: {problem}"
    ]


@pytest.mark.parametrize(
    "said",
    [
        "(C7518) Potential Performance Loss: wgmma.mma_async instructions are serialized due to program "
        "dependence on compiler-inserted WG.DP in divergent path in the",
        "(C7519) warpgroup.arrive is injected in around line 5135 by compiler to allow use of registers in "
        "GMMA in",
    ],
)
def test_wgmma_one_by_one(build, said):
    (build / "cuda/conv-f16.o.ptxas").write_text(f"ptxas info    : {said} function '{GATE}'\n{REPORT}")
    assert found(build) == [
        "conv-f16: gate_kernel for sm_80: ptxas serialised wgmma, or put waits among them"
    ]


def test_kernels_of_wgmma_have_their_instructions():
    row = {
        "kernel": "wgmma_kernel<half_t, WarpGroupForm<4, 1, 1, 8, 1>>",
        "base": "wgmma",
        "object": "conv_wgmma",
    }
    row |= dict.fromkeys(("shared", "spill_stores", "spill_loads", "stack", *ptxas.COUNTED), 0)
    row |= {"arch": "sm_90a", "registers": 128, "ACQBULK": 1, "PREEXIT": 1, "LDGSTS": 1}
    assert not ptxas.problems([row | {"HGMMA": 1}])
    (line,) = ptxas.problems([row | {"HMMA": 1}])
    assert line.endswith("no HGMMA: the tensor cores are not used as warp groups do")
    (line,) = ptxas.problems([row | {"HGMMA": 1, "registers": 129}])
    assert line.endswith("129 registers, the budget is 128")


def test_faults_of_a_function_that_a_kernel_calls(build):
    called = "Function properties for f\n    8 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads"
    report = REPORT.replace("Used 46", f"{called}\nptxas info    : Used 46")
    (build / "cuda/conv-f16.o.ptxas").write_text(report)
    assert found(build) == ["conv-f16: gate_kernel for sm_80: a stack frame of 8 bytes"]


def test_a_kernel_that_does_not_wait_for_the_one_before_it():
    row = {"kernel": "gate_kernel", "base": "gate", "object": "gate", "registers": 46, "stack": 0}
    row |= dict.fromkeys(("shared", "spill_stores", "spill_loads", *ptxas.COUNTED), 0)
    waits = {"ACQBULK": 1, "PREEXIT": 1}
    assert not ptxas.problems([row | {"arch": "sm_89"}, row | waits | {"arch": "sm_90a"}])
    for missing in waits:
        (line,) = ptxas.problems([row | waits | {"arch": "sm_90a", missing: 0}])
        assert line.endswith("no ACQBULK or no PREEXIT: it does not wait for the kernel before it")


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("HMMA.16816.F32", "FFMA", "no HMMA: the tensor cores are not used"),
        ("LDGSTS", "LDG", "no LDGSTS: copies to shared memory are not asynchronous"),
        ("IMAD.MOV.U32 R1", "@P1 LDL.64 R1", "local memory: 1 LDL, 0 STL"),
        ("IMAD.MOV.U32 R1", "STL [R1]", "local memory: 0 LDL, 1 STL"),
    ],
)
def test_faults_in_the_instructions(build, monkeypatch, old, new, problem):
    dump(build, monkeypatch, SASS.replace(old, new))
    assert found(build) == [
        f"conv-f16: conv_kernel<half_t, CompiledForm<9, 1, 1, 4, 1>> for sm_80: {problem}"
    ]


def test_kernels_of_levels_multiply_these():
    row = {"kernel": "conv_levels_kernel", "base": "conv_levels", "object": "conv_levels", "arch": "sm_80"}
    row |= {"registers": 46, "stack": 0, **dict.fromkeys(("shared", "spill_stores", "spill_loads"), 0)}
    row |= dict.fromkeys(ptxas.COUNTED, 0) | {"LDGSTS": 2}
    assert not ptxas.problems([row | {"IMMA": 1}])
    (line,) = ptxas.problems([row | {"HMMA": 1}])
    assert line.endswith("no IMMA: the tensor cores are not used")
    form = "conv_levels_kernel<CompiledForm<1, 1, 4, 2, 4>>"
    assert ptxas.budget(row | {"kernel": form}) == THREAD["conv"][64, 16, 4]


def test_a_budget_of_registers(build, monkeypatch):
    monkeypatch.setitem(ptxas.REGISTERS, "gate", 45)
    assert found(build) == ["conv-f16: gate_kernel for sm_80: 46 registers, the budget is 45"]


def test_names(monkeypatch):
    kernel = "void stdc::gpu::(anonymous namespace)::k<a::T, (a::Kind)1>(a::(anonymous namespace)::Args)"
    assert ptxas.short(kernel) == "k<T, (Kind)1>"
    assert ptxas.short("plain_kernel(void (*)(int), float*)") == "plain_kernel"
    assert ptxas.short("plain") == "plain"
    assert [ptxas.base(name) for name in (CONV, GATE, "_Z11down_kernelv", "plain")] == [
        *("conv", "gate", "down", "plain")
    ]
    monkeypatch.setattr(ptxas.shutil, "which", lambda name: None)
    assert ptxas.demangle([CONV]) == {CONV: f"conv {CONV.partition('_kernel')[2]}"}


def test_command_line(build, capsys, monkeypatch):
    out = build / "ptxas.jsonl"
    arguments = ["--build", str(build), "--out", str(out), "--sass", "sm_80"]
    assert ptxas.main(arguments) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row["base"], row["arch"]) for row in rows] == [
        *(("conv", "sm_80"), ("conv", "sm_90a"), ("gate", "sm_80"))
    ]
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split()[:3] == ["kernel", "arch", "registers"]
    assert re.match(r"conv_kernel<half_t, CompiledForm<9, 1, 1, 4, 1>> +sm_90a +120 .* - +-$", printed[2])
    assert printed[-1] == "3 kernels and targets, 0 problems"
    dump(build, monkeypatch, SASS.replace("LDSM", "STL"))
    assert ptxas.main(arguments) == 1
    assert "for sm_80: local memory: 0 LDL, 1 STL\n" in capsys.readouterr().out
    monkeypatch.setattr(ptxas, "find_cuobjdump", lambda: None)
    assert ptxas.main(arguments) == 0
    assert "no cuobjdump; pip install triton" in capsys.readouterr().err


def test_without_a_build(build, monkeypatch):
    (build / "cuda/conv-f16.o.ptxas").write_text(REPORT.partition("ptxas info    : Used")[0])
    with pytest.raises(UserError, match=r"does not say the registers of .*conv_kernel"):
        ptxas.read(build)
    (build / "cuda/conv-f16.o.ptxas").unlink()
    with pytest.raises(UserError, match=r"cuda/conv-f16\.o is missing"):
        ptxas.read(build)
    (build / "build.ninja").unlink()
    monkeypatch.setattr(_native, "cuda_info", lambda: {"built": False, "reason": "nvcc was not found"})
    with pytest.raises(UserError, match="has no CUDA objects: nvcc was not found; then pip install -e "):
        ptxas.read(build)


def test_the_kernels_of_this_tree(cuda_targets):
    rows = ptxas.read()
    assert ptxas.problems(rows) == []
    assert {row["base"] for row in rows} >= {"conv", "stem", "down", "gate", "prologue", "upsample"}
    archs = {"sm_" + target for target in cuda_targets if not target.endswith("+PTX")}
    assert {row["arch"] for row in rows} == archs
    assert all(ptxas.budget(row) < ptxas.MOST_REGISTERS for row in rows)
    if not ptxas.find_cuobjdump():
        pytest.skip("cuobjdump is missing: instructions are not looked at")
    assert {row["arch"] for row in rows if "HMMA" in row} == archs.intersection(ptxas.SASS)
