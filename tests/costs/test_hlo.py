"""Programs in HLO text, of other backends and other versions, written by hand."""

import textwrap

import pytest

from dbjax.costs.collectives import Collective
from dbjax.costs.hlo import parse
from dbjax.costs.program import tally

ADD = """
%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(f32[] %a, f32[] %b)
}
"""


def program(main, others=ADD, head="num_partitions=8"):
    return f"HloModule test, is_scheduled=true, {head}\n{others}\n" + textwrap.dedent(main).strip()


def phases(text):
    module = parse(text)
    found = tally(module.entry, module)
    return [found.phases[key] for key in sorted(found.phases) if found.phases[key]]


def collectives(text):
    return [each for phase in phases(text) for each in phase.collectives]


def test_asynchronous_collectives():
    """As on GPU and TPU: what starts has (operands, results, ...); what is done costs nothing."""
    text = program("""
    ENTRY %main (x: bf16[16,32]) -> bf16[128,32] {
      %x = bf16[16,32]{1,0:T(8,128)(2,1)} parameter(0), sharding={devices=[8,1]<=[8]}
      %start = (bf16[16,32]{1,0}, bf16[128,32]{1,0}) all-gather-start(%x), channel_id=1, replica_groups=[1,8]<=[8], dimensions={0}, use_global_device_ids=true, metadata={op_name="a(b, \\"c"}
      %aside = bf16[16,32]{1,0} multiply(%x, %x)
      %done = bf16[128,32]{1,0} all-gather-done(%start)
      %shift = (bf16[128,32]{1,0}, bf16[128,32]{1,0}, u32[], u32[]) collective-permute-start(%done), channel_id=2, source_target_pairs={{0,1},{1,0}}
      %shifted = bf16[128,32]{1,0} collective-permute-done(%shift)
      ROOT %y = bf16[128,32]{1,0} add(%done, %shifted)
    }
    """)  # noqa: E501
    first, second, third = phases(text)
    everyone = (tuple(range(8)),)
    assert first.collectives == (Collective("all-gather", 1024, 8192, 8, groups=everyone),)
    assert second.collectives == (
        Collective("collective-permute", 8192, 8192, 2, ((0, 1), (1, 0))),
    )
    assert (first.flops, second.flops, third.flops) == (16 * 32, 0, 128 * 32)
    assert first.bytes == 1024 + 8192 + 2 * 1024  # x is read twice by the product, and once
    assert third.collectives == ()


def test_an_asynchronous_call_of_a_collective():
    wrapped = """
%wrapped (p: f32[64]) -> f32[8] {
  %p = f32[64]{0} parameter(0)
  ROOT %rs = f32[8]{0} reduce-scatter(%p), channel_id=1, replica_groups={{0,1,2,3,4,5,6,7}}, use_global_device_ids=true, dimensions={0}, to_apply=%add
}, execution_thread="parallel"
"""  # noqa: E501
    text = program(
        """
    ENTRY %main (x: f32[64]) -> f32[8] {
      %x = f32[64]{0} parameter(0)
      %start = ((f32[64]{0}), f32[8]{0}) async-start(%x), calls=%wrapped
      %done = f32[8]{0} async-done(%start)
      ROOT %y = f32[8]{0} negate(%done)
    }
    """,
        ADD + wrapped,
    )
    first, second = phases(text)
    (each,) = first.collectives
    assert (each.kind, each.input_bytes, each.output_bytes) == ("reduce-scatter", 256, 32)
    assert second.flops == 8


def test_a_combined_all_reduce():
    text = program("""
    ENTRY %main (x: f32[10], y: bf16[6]) -> (f32[10], bf16[6]) {
      %x = f32[10]{0} parameter(0)
      %y = bf16[6]{0} parameter(1)
      ROOT %both = (f32[10]{0}, /*index=1*/bf16[6]{0}) all-reduce-start(%x, /*index=1*/%y), channel_id=1, replica_groups={{0,1},{2,3},{4,5},{6,7}}, use_global_device_ids=true, to_apply=%add
    }
    """)  # noqa: E501
    (each,) = collectives(text)
    assert (each.input_bytes, each.output_bytes, each.group_size) == (52, 52, 2)


@pytest.mark.parametrize(
    ("head", "attributes", "expected"),
    [
        ("num_partitions=4", "channel_id=1, use_global_device_ids=true, ", ((0, 1, 2, 3),)),
        ("replica_count=4", "", ((0, 1, 2, 3),)),  # between replicas
        ("replica_count=2, num_partitions=3", "", ((0, 3),)),
        ("replica_count=2, num_partitions=2", "channel_id=1, ", ((0, 1, 2, 3),)),
    ],
)
def test_empty_groups_are_all(head, attributes, expected):
    text = program(
        f"""
    ENTRY %main (x: f32[10]) -> f32[10] {{
      %x = f32[10]{{0}} parameter(0)
      ROOT %y = f32[10]{{0}} all-reduce(%x), {attributes}replica_groups={{}}, to_apply=%add
    }}
    """,
        head=head,
    )
    (each,) = collectives(text)
    assert each.groups == expected
    assert each.group_size == len(expected[0])


LOOP = """
%body (s: (s32[], f32[4,4])) -> (s32[], f32[4,4]) {
  %s = (s32[], f32[4,4]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %x = f32[4,4]{1,0} get-tuple-element(%s), index=1
  %y = f32[4,4]{1,0} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %z = f32[4,4]{1,0} all-reduce(%y), channel_id=1, replica_groups=[2,4]<=[8], use_global_device_ids=true, to_apply=%add
  %w = f32[4,4]{1,0} negate(%z)
  ROOT %t = (s32[], f32[4,4]{1,0}) tuple(%i, %w)
}
%condition (s: (s32[], f32[4,4])) -> pred[] {
  %s = (s32[], f32[4,4]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %n = s32[] constant(6)
  ROOT %less = pred[] compare(%i, %n), direction=LT
}
"""  # noqa: E501
LOOPED = program(
    """
    ENTRY %main (x: f32[4,4]) -> f32[4,4] {
      %x = f32[4,4]{1,0} parameter(0)
      %zero = s32[] constant(0)
      %s = (s32[], f32[4,4]{1,0}) tuple(%zero, %x)
      %loop = (s32[], f32[4,4]{1,0}) while(%s), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"6"},"other":[]}
      %y = f32[4,4]{1,0} get-tuple-element(%loop), index=1
      ROOT %z = f32[4,4]{1,0} dot(%y, %y), lhs_contracting_dims={1}, rhs_contracting_dims={0}
    }
    """,  # noqa: E501
    ADD + LOOP,
)


def test_a_loop_with_a_collective():
    first, second, after = phases(LOOPED)
    assert [phase.repeats for phase in (first, second, after)] == [6, 6, 1]
    assert (first.flops, second.flops, after.flops) == (2 * 4**3 + 1, 16, 2 * 4**3)
    (each,) = first.collectives
    assert (each.repeats, each.group_size) == (6, 4)


def test_trips_that_are_not_said_are_counted_as_one():
    module = parse(LOOPED.replace("known_trip_count", "unknown"))
    found = tally(module.entry, module)
    assert {phase.repeats for phase in found.phases.values()} == {1}
    assert any("loop" in words for words in found.unknown)
    known = parse(LOOPED)
    assert not tally(known.entry, known).unknown


def test_products_handed_to_a_library():
    text = program("""
    ENTRY %main (x: f32[8,16], w: f32[16,32]) -> f32[8,32] {
      %x = f32[8,16]{1,0} parameter(0)
      %w = f32[16,32]{1,0} parameter(1)
      %both = (f32[8,32]{1,0}, s8[1024]{0}) custom-call(%x, %w), custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":{"alpha_real":1,"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}
      ROOT %y = f32[8,32]{1,0} get-tuple-element(%both), index=0
    }
    """)  # noqa: E501
    (phase,) = phases(text)
    assert phase.flops == 2 * 8 * 16 * 32
    module = parse(text.replace("lhs_contracting_dimensions", "hidden"))
    found = tally(module.entry, module)
    assert any("__cublas$gemm" in words for words in found.unknown)


@pytest.mark.parametrize(
    ("instruction", "moved"),
    [
        ("f32[1,100] dynamic-slice(%a, %i, %i), dynamic_slice_sizes={1,100}", 2 * 400 + 4),
        ("f32[2,100] slice(%a), slice={[0:2], [0:100]}", 2 * 800),
        ("f32[9,100] dynamic-update-slice(%a, %b, %i, %i)", 2 * 400 + 4),
        ("f32[9,100] copy(%a)", 2 * 3600),
        ("f32[9,100] multiply(%a, %a)", 2 * 3600),  # an operand is read once
        ("f32[100,9] bitcast(%a)", 0),
        ("f32[9,100] iota(), iota_dimension=0", 3600),
    ],
)
def test_traffic(instruction, moved):
    text = program(f"""
    ENTRY %main (a: f32[9,100], i: s32[], b: f32[1,100]) -> f32[] {{
      %a = f32[9,100]{{1,0}} parameter(0)
      %i = s32[] parameter(1)
      %b = f32[1,100]{{1,0}} parameter(2)
      ROOT %y = {instruction}
    }}
    """)
    assert sum(phase.bytes for phase in phases(text)) == moved


def test_slices_and_updates_in_a_fusion_move_what_they_take_and_put():
    inner = """
%inner (a: f32[9,100], i: s32[], b: f32[7,100]) -> f32[9,100] {
  %a = f32[9,100]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %b = f32[7,100]{1,0} parameter(2)
  %zero = s32[] constant(0)
  %row = f32[1,100]{1,0} dynamic-slice(%b, %i, %zero), dynamic_slice_sizes={1,100}
  ROOT %put = f32[9,100]{1,0} dynamic-update-slice(%a, %row, %i, %zero)
}
"""
    text = program(
        """
    ENTRY %main (a: f32[9,100], i: s32[], b: f32[7,100]) -> f32[9,100] {
      %a = f32[9,100]{1,0} parameter(0)
      %i = s32[] parameter(1)
      %b = f32[7,100]{1,0} parameter(2)
      ROOT %put = f32[9,100]{1,0} fusion(%a, %i, %b), kind=kLoop, calls=%inner
    }
    """,
        inner,
    )
    (phase,) = phases(text)
    assert phase.bytes == 400 + 400 + 4  # a row read, a row written, the index
    (whole,) = phases(text.replace("  ROOT %put", "  %all = f32[7,100] negate(%b)\n  ROOT %put", 1))
    assert whole.bytes == 2800 + 400 + 4  # b is read for something else too
    copying = text.replace("ROOT %put = f32[9,100]{1,0} dynamic", "%new = f32[9,100]{1,0} dynamic")
    result = "  ROOT %result = f32[9,100]{1,0} negate(%new)\n}"
    (copied,) = phases(copying.replace("}\n\nENTRY", result + "\n\nENTRY"))
    assert copied.bytes == 3600 + 400 + 4 + 3600  # no longer in place


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ("dot(%y, %y)", "dot(%y, %missing)"),
        ("dot(%y, %y)", "dot(%y, %y"),
        ("ROOT %z = f32[4,4]{1,0} dot", "ROOT %z = f32[4,4]{1,0} "),
        ("ROOT %z = f32[4,4]{1,0} dot", "ROOT %z = float[4,4] dot"),
        ("lhs_contracting_dims={1}, rhs_contracting_dims={0}\n}", "nothing\n}"),
        ("body=%body", "body=%nobody"),
        ("replica_groups=[2,4]<=[8]", "replica_groups=[2,4]=>[8]"),
    ],
)
def test_a_line_that_is_not_understood_is_named(good, bad):
    assert good in LOOPED
    broken = LOOPED.replace(good, bad)
    (line,) = (after for before, after in zip(
        LOOPED.splitlines(), broken.splitlines(), strict=True) if before != after)  # fmt: skip
    with pytest.raises(ValueError, match=r"HLO|replica_groups") as caught:
        phases(broken)
    assert line.strip() in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["", "ENTRY %main () -> f32[] {\n}", "HloModule m\n", "HloModule m\n\nstray\n", LOOPED[:-2]],
)
def test_what_is_no_program_is_refused(text):
    with pytest.raises(ValueError, match="HLO"):
        parse(text)
