"""The TPU compiler's estimate, read out of the text of a program."""

from ddpm_jax.preflight import cost

ESTIMATE = 'backend_config={{"window_config":{{"estimated_cycles":"{}","iteration_bounds":["1"]}}}}'
TEXT = f"""HloModule jit_f, is_scheduled=true

%adds (a: f32[], b: f32[]) -> f32[] {{
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add = f32[] add(%a, %b)
}}

%fused_conv (p: bf16[2,4,4,8]) -> (f32[8], bf16[2,4,4,8]) {{
  %p = bf16[2,4,4,8]{{3,0,2,1:T(8,128)(2,1)}} parameter(0)
  %conv.1 = bf16[2,4,4,8]{{3,0,2,1}} convolution(%p, %p), metadata={{op_name="jit(f)/conv1/conv_general_dilated"}}
  %sum = f32[8]{{0}} reduce(%conv.1, %p), dimensions={{0,1,2}}, to_apply=%adds
  ROOT %t = (f32[8]{{0}}, bf16[2,4,4,8]{{3,0,2,1}}) tuple(%sum, %conv.1)
}}

%fused_dot (p: bf16[8,8]) -> bf16[8,8] {{
  %p = bf16[8,8]{{1,0}} parameter(0)
  ROOT %conv.2 = bf16[8,8]{{1,0}} convolution(%p, %p), metadata={{op_name="jit(f)/q/dot_general"}}
}}

%fused_sum (p: f32[8,8]) -> f32[8] {{
  %p = f32[8,8]{{1,0}} parameter(0)
  ROOT %sum = f32[8]{{0}} reduce(%p, %p), dimensions={{0}}, to_apply=%adds
}}

%fused_add (p: f32[8]) -> f32[8] {{
  %p = f32[8]{{0}} parameter(0)
  ROOT %add = f32[8]{{0}} add(%p, %p)
}}

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {{
  %p = (s32[], f32[8]{{0}}) parameter(0)
  %x = f32[8]{{0}} get-tuple-element(%p), index=1
  %add.1 = f32[8]{{0}} fusion(%x), kind=kLoop, calls=%fused_add, {ESTIMATE.format(7)}
  ROOT %out = (s32[], f32[8]{{0}}) tuple(%x, %add.1)
}}

%condition (p: (s32[], f32[8])) -> pred[] {{
  %p = (s32[], f32[8]{{0}}) parameter(0)
  ROOT %less = pred[] constant(true)
}}

ENTRY %main (x: bf16[2,4,4,8], w: bf16[8,8]) -> f32[8] {{
  %x = bf16[2,4,4,8]{{3,0,2,1:T(8,128)(2,1)S(1)}} parameter(0)
  %w = bf16[8,8]{{1,0}} parameter(1)
  %both = (f32[8]{{0}}, bf16[2,4,4,8]{{3,0,2,1}}) fusion(%x), kind=kOutput, calls=%fused_conv, {ESTIMATE.format(1000)}
  %product = bf16[8,8]{{1,0}} fusion(%w), kind=kOutput, calls=%fused_dot, {ESTIMATE.format(200)}
  %turned = bf16[8,8]{{0,1}} copy(%product), {ESTIMATE.format(30)}
  %all = bf16[8,8]{{0,1}} all-reduce(%turned), replica_groups={{{{0,1}}}}, to_apply=%adds, {ESTIMATE.format(5)}
  %summed = f32[8]{{0}} fusion(%all), kind=kLoop, calls=%fused_sum, {ESTIMATE.format(60)}
  %state = (s32[], f32[8]{{0}}) tuple(%summed, %summed)
  %loop = (s32[], f32[8]{{0}}) while(%state), condition=%condition, body=%body, {'backend_config={"known_trip_count":{"n":"20"}}'}
  ROOT %result = f32[8]{{0}} get-tuple-element(%loop), index=1
}}
"""  # noqa: E501


def test_estimates_are_added_up_by_kind_and_loops_count_as_often_as_they_run():
    assert cost.estimated_cycles(TEXT) == {
        "convolutions": 1000,
        "matrix products": 200,
        "the rest": 20 * 7,
        "sums": 60,
        "copies": 30,
        "between devices": 5,
    }


def test_a_program_without_estimates_has_none():
    assert cost.estimated_cycles(TEXT.replace("estimated_cycles", "something_else")) == {}
    assert cost.estimated_cycles("") == {}
