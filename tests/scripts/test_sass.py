"""What bench.sass reads of machine code: control bits, loops and their paths, and how long steps take."""

import dataclasses
import json

import pytest

from bench import ptxas, sass
from bench.sass import Instruction


def code(*lines, stall=2):
    """Instructions at 0x00, 0x10, ...; "name text" each, with a stall in front where it is another."""
    made = []
    for i, line in enumerate(lines):
        head, _, rest = line.partition(" ")
        own, text = (int(head), rest) if head.isdigit() else (stall, line)
        made.append(Instruction(16 * i, text, own, None, None, ()))
    return made


#: A step: a branch around a loop that copies pixels, a copy of weights, a product, and the branch back.
STEP = code(
    "IADD3 R1, R1, 1", "@P0 BRA 0x50", "LDGSTS.E.ZFILL [R2], [R4]", "IADD3 R2, R2, 1", "@P1 BRA 0x20",
    "LDGSTS.E [R6], [R8]", "7 HMMA.16816.F32 R12, R16, R20, R12", "@P2 BRA 0x90", "IADD3 R9, R9, 1",
    "BAR.SYNC", "@P3 BRA 0x0", "EXIT",
)  # fmt: skip


def test_the_usual_path_has_all_products_and_no_loops_inside():
    (loop,) = sass.main_loops(STEP)
    assert (loop.first, loop.last) == (0, 10)
    path = sass.usual_path(STEP, loop)
    assert [one.at // 16 for one in path] == [0, 1, 5, 6, 7, 9, 10]


def test_a_step_is_no_shorter_than_its_stalls():
    path = sass.usual_path(STEP, sass.main_loops(STEP)[0])
    alone = sass.simulate(path, 1, 1)
    stalls = sum(one.stall for one in path)
    assert stalls <= alone < stalls + 2 * sass.LATENCY["HMMA"] + sass.BARRIER
    # Warps of a block that wait for each other take no longer than one after the other, and no less than one.
    assert alone <= sass.simulate(path, 1, 4) <= 4 * alone
    assert alone <= sass.simulate(path, 4, 1) <= 4 * alone


def test_results_are_waited_for():
    load = Instruction(0, "LDS R4, [R2]", 2, 0, None, ())
    use = Instruction(16, "FADD R5, R4, R4", 2, None, None, (0,))
    free = Instruction(16, "FADD R5, R6, R6", 2, None, None, ())
    waits = sass.simulate([load, use], 1, 1)
    assert waits >= sass.LATENCY["LDS"] > sass.simulate([load, free], 1, 1)


GROUP = code(
    "HGMMA.64x128x16.F32 R24, R88, gdesc[UR12], R24, gsb0", "WARPGROUP.DEPBAR.LE gsb0, 0x1", "LDSM R88, [R2]",
    "@P0 BRA 0x0", "EXIT", "SYNCS.PHASECHK.TRANS64.TRYWAIT P1, [R3], R4", "@!P1 BRA 0x50", "BRA 0x10",
)  # fmt: skip


def test_a_wait_behind_the_end_is_no_loop():
    (loop,) = sass.main_loops(GROUP)
    assert (loop.first, loop.last) == (0, 3)


def test_wgmma_takes_the_tensor_cores_for_half_its_columns():
    """And a wait for all but one lets the next be issued meanwhile, a wait for all does not."""
    path = sass.usual_path(GROUP, sass.main_loops(GROUP)[0])
    assert 63 < sass.simulate(path, 1, 1, 100) < 66
    assert 127 < sass.simulate(path, 1, 2, 100) < 130
    all_ = [dataclasses.replace(one, text=one.text.replace("0x1", "0x0")) for one in path]
    assert sass.simulate(all_, 1, 1, 100) >= 64 + sass.LATENCY["HMMA"]


def test_control_bits():
    """Of an instruction that nvcc 13.0 wrote for sm_90a, as cuobjdump prints it."""
    text = (
        "\t\tFunction : some_kernel\n"
        "        /*4300*/                   LDS.128 R24, [R90+UR6] ;        /* 0x000000065a187984 */\n"
        "                                                                   /* 0x000e620008000c00 */\n"
    )
    ((one,),) = sass.parse(text).values()
    assert (one.at, one.base, one.stall, one.sets, one.frees, one.waits) == (0x4300, "LDS", 1, 1, None, ())


def test_a_slower_loop_fails():
    (key, most), *_ = sass.BUDGETS.items()
    base, block, units = key
    row = {"kernel": "k", "base": base, "object": "o", "arch": "sm_80", "block": block}
    row |= {"steps": {units: {"stalls": most}}}
    assert sass.problems([row]) == []
    row["steps"][units]["stalls"] += 1
    assert sass.problems([row]) == [f"o: k for sm_80: a step of {units} units stalls for {most + 1} cycles, "
                                    f"the budget is {most}"]  # fmt: skip


@pytest.mark.parametrize("base", sass.EARLY)
def test_loads_that_were_moved_behind_the_wait_fail(base):
    row = {
        "kernel": "k",
        "base": base,
        "object": "o",
        "arch": "sm_90a",
        "loads_before_wait": sass.EARLY[base],
    }
    assert sass.problems([row, row | {"arch": "sm_80", "loads_before_wait": None}]) == []
    row["loads_before_wait"] -= 1
    (found,) = sass.problems([row])
    assert found.startswith(f"o: k for sm_90a: {sass.EARLY[base] - 1} loads before the wait")


def test_the_kernels_of_this_tree(cuda_targets):
    """Within their budgets, with a loop for each size of a kernel, and the shipped cycles are theirs."""
    if not ptxas.find_cuobjdump():
        pytest.skip("cuobjdump is missing")
    if missing := set(sass.TARGETS) - {f"sm_{target}" for target in cuda_targets}:
        pytest.skip(f"not built for {', '.join(sorted(missing))}")
    rows = sass.read(blocks=(1,))
    assert sass.problems(rows) == []
    convs = [row for row in rows if row["base"] == "conv"]
    steps = {1: {"4", "9"}, 4: {"8", "36"}}  # by slices
    assert convs and all(set(row["steps"]) == steps[sass.form(row["kernel"])[4]] for row in convs)
    assert not any(row["local"] for row in convs)
    shipped = json.loads(sass.SHIPPED.read_text())
    assert shipped == sass.cycles(rows), "run python -m bench.sass --ship"
    # Without them shorter steps would cost nothing.
    assert all(
        form["rest"] and form["short"] for kind in ("conv", "conv_levels") for form in shipped[kind].values()
    )
    # ptxas' report and the code agree on what is there.
    assert {r["kernel"] for r in rows} == {r["kernel"] for r in ptxas.read(targets=())}
