# ruff: noqa: E501 (an instruction stands on one line)
"""Small HLO programs written by hand, with the answers beside them."""

# A loop of 3 trips (read from its condition: 2, 3, 4 < 5) inside one of 4 (written beside it): 12 matmuls of 1000 cycles.
NESTED = """\
HloModule made_up, is_scheduled=true

FileNames
1 "/somewhere/t_elaine/model/llama.py"
2 "/elsewhere/jax/lax.py"

FunctionNames
1 "layer"

FileLocations
1 {file_name_id=1 function_name_id=1 line=77 end_line=77 column=1 end_column=2}
2 {file_name_id=2 function_name_id=1 line=5 end_line=5 column=1 end_column=2}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}

%product (x: bf16[64,128], w: bf16[128,256]) -> bf16[64,256] {
  %x = bf16[64,128]{1,0:T(8,128)(2,1)} parameter(0)
  %w = bf16[128,256]{1,0:T(8,128)(2,1)} parameter(1)
  ROOT %y = bf16[64,256]{1,0:T(8,128)(2,1)} convolution(%x, %w), dim_labels=bf_io->bf
}

%compared (a: s32[], b: s32[]) -> pred[] {
  %a = s32[]{:T(128)} parameter(0)
  %b = s32[]{:T(128)} parameter(1)
  ROOT %less = pred[]{:T(512)} compare(%a, %b), direction=LT
}

%short.condition (c: (s32[], bf16[64,128], bf16[128,256], s32[])) -> pred[] {
  %c = (s32[]{:T(128)}, bf16[64,128]{1,0}, bf16[128,256]{1,0}, s32[]{:T(128)}) parameter(0)
  %number = s32[]{:T(128)} get-tuple-element(%c), index=0
  %end = s32[]{:T(128)} get-tuple-element(%c), index=3
  ROOT %goes_on = pred[]{:T(512)} fusion(%number, %end), kind=kLoop, calls=%compared
}

%short.body (s: (s32[], bf16[64,128], bf16[128,256], s32[])) -> (s32[], bf16[64,128], bf16[128,256], s32[]) {
  %s = (s32[]{:T(128)}, bf16[64,128]{1,0}, bf16[128,256]{1,0}, /*index=3*/s32[]{:T(128)}) parameter(0)
  %n = s32[]{:T(128)} get-tuple-element(%s), index=0
  %one = s32[]{:T(128)} constant(1)
  %next = s32[]{:T(128)} add(%one, %n)
  %in = bf16[64,128]{1,0} get-tuple-element(%s), index=1
  %weights = bf16[128,256]{1,0} get-tuple-element(%s), index=2
  %last = s32[]{:T(128)} get-tuple-element(%s), index=3
  %matmul = bf16[64,256]{1,0} fusion(%in, %weights), kind=kOutput, calls=%product, metadata={op_name="jit(step)/jvp()/while/body/dot_general" stack_frame_id=2}, backend_config={"window_config":{"estimated_cycles":"1000"}}
  ROOT %carried = (s32[]{:T(128)}, bf16[64,128]{1,0}, bf16[128,256]{1,0}, s32[]{:T(128)}) tuple(%next, %in, %weights, %last)
}

%long.condition (d: (s32[], bf16[64,128], bf16[128,256])) -> pred[] {
  %d = (s32[], bf16[64,128]{1,0}, bf16[128,256]{1,0}) parameter(0)
  ROOT %always = pred[] constant(true)
}

%long.body (t: (s32[], bf16[64,128], bf16[128,256])) -> (s32[], bf16[64,128], bf16[128,256]) {
  %t = (s32[], bf16[64,128]{1,0}, bf16[128,256]{1,0}) parameter(0)
  %two = s32[] constant(2)
  %five = s32[] constant(5)
  %left = bf16[64,128]{1,0} get-tuple-element(%t), index=1
  %right = bf16[128,256]{1,0} get-tuple-element(%t), index=2
  %whole = bf16[128,256]{1,0} all-gather(%left), channel_id=1, replica_groups={{0,1,2,3}}, dimensions={0}
  %begun = (s32[], bf16[64,128]{1,0}, bf16[128,256]{1,0}, s32[]) tuple(%two, %left, %right, %five)
  %short = (s32[], bf16[64,128]{1,0}, bf16[128,256]{1,0}, s32[]) while(%begun), condition=%short.condition, body=%short.body
  %again = s32[] get-tuple-element(%t), index=0
  ROOT %out = (s32[], bf16[64,128]{1,0}, bf16[128,256]{1,0}) tuple(%again, %left, %right)
}

%cheap (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %small = f32[8]{0} negate(%p), backend_config={"window_config":{"estimated_cycles":"10"}}
}

%dear (q: f32[8]) -> f32[8] {
  %q = f32[8]{0} parameter(0)
  ROOT %large = f32[8]{0} exponential(%q), backend_config={"window_config":{"estimated_cycles":"70"}}
}

%apart (r: bf16[4096,64]) -> bf16[1024,64] {
  %r = bf16[4096,64]{1,0} parameter(0)
  ROOT %piece = bf16[1024,64]{1,0} reduce-scatter(%r), channel_id=2, replica_groups=mesh['a'=2,'b'=2] {'a','b'}, dimensions={0}
}, execution_thread="sparsecore"

ENTRY %main (arg0: bf16[64,128], arg1: bf16[128,256], arg2: pred[], arg3: f32[8]) -> bf16[64,256] {
  %arg0 = bf16[64,128]{1,0} parameter(0)
  %arg1 = bf16[128,256]{1,0} parameter(1)
  %arg2 = pred[] parameter(2)
  %arg3 = f32[8]{0} parameter(3)
  %zero = s32[] constant(0)
  %first = (s32[], bf16[64,128]{1,0}, bf16[128,256]{1,0}) tuple(%zero, %arg0, %arg1)
  %long = (s32[], bf16[64,128]{1,0}, bf16[128,256]{1,0}) while(%first), condition=%long.condition, body=%long.body, backend_config={"known_trip_count":{"n":"4"}}
  %either = f32[8]{0} conditional(%arg2, %arg3, %arg3), true_computation=%cheap, false_computation=%dear
  %scatter = ((), (), (s32[8]{0})) custom-call-start(), async_execution_thread="sparsecore", custom_call_target="T", called_computations={%apart}
  %scattered = bf16[1024,64]{1,0} custom-call-done(%scatter)
  %moved = (bf16[64,128]{1,0:S(1)}, bf16[64,128]{1,0}, u32[]) copy-start(%arg0)
  %sent = (bf16[64,128]{1,0:S(5)}, bf16[64,128]{1,0}, u32[]) copy-start(%arg0)
  %copied = bf16[64,256]{1,0} copy(%arg1), backend_config={"window_config":{"estimated_cycles":"500"}}
  ROOT %result = bf16[64,256]{1,0} get-tuple-element(%long), index=2
}
"""

KERNELS = """\
HloModule attention

ENTRY %main (q: bf16[1,32,8192,128], k: bf16[1,8,8192,128]) -> f32[8] {
  %q = bf16[1,32,8192,128]{3,2,1,0} parameter(0)
  %k = bf16[1,8,8192,128]{3,2,1,0} parameter(1)
  %forward = (bf16[1,32,8192,128]{3,2,1,0}, f32[1,32,8192]{2,1,0}) custom-call(%q, %k, %k), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 1024, \\"block_kv\\": 1024}"
}}, metadata={op_name="jit(f)/jvp(g)/splash_mha_fwd"}
  %dkv = (f32[1024,128]{1,0}, bf16[1,8,8192,128]{3,2,1,0}, bf16[1,8,8192,128]{3,2,1,0}) custom-call(%q, %k, %k), custom_call_target="tpu_custom_call", metadata={op_name="jit(f)/transpose(jvp(g))/splash_mha_dkv"}
  %dq = bf16[1,32,8192,128]{3,2,1,0} custom-call(%q, %k, %k), custom_call_target="tpu_custom_call", metadata={op_name="jit(f)/transpose(jvp(g))/splash_mha_dq"}
  %fused = (bf16[8,32,8192,128]{3,2,1,0}, bf16[1,8,8192,128]{3,2,1,0}, bf16[1,8,8192,128]{3,2,1,0}) custom-call(%q, %k, %k), custom_call_target="tpu_custom_call", metadata={op_name="jit(f)/transpose(jvp(g))/splash_mha_dkv_no_residuals"}
  %turned = bf16[1,32,8192,128]{3,2,1,0} custom-call(%q), custom_call_target="tpu_custom_call", metadata={op_name="jit(f)/rope"}
  ROOT %end = f32[8]{0} constant({0, 0, 0, 0, 0, 0, 0, 0})
}
"""

# One asynchronous gather in three fusions (start, carried along by a matmul, done), and an all-reduce that is cut.
FUSED = """\
HloModule fused

%starts (a: bf16[1024,64]) -> bf16[4096,64] {
  %a = bf16[1024,64]{1,0} parameter(0)
  %marker = s32[] custom-call(), custom_call_target="AsyncCollectiveStart"
  ROOT %gather = bf16[4096,64]{1,0} all-gather(%a), replica_groups=[2,2]<=[2,2]T(1,0), dimensions={0}
}

%carries (b: bf16[1024,64], c: bf16[64,64]) -> bf16[1024,64] {
  %b = bf16[1024,64]{1,0} parameter(0)
  %c = bf16[64,64]{1,0} parameter(1)
  %along = bf16[4096,64]{1,0} all-gather(%b), replica_groups=[2,2]<=[2,2]T(1,0), dimensions={0}, backend_config={"async_collective_fusion_config":{}}
  ROOT %work = bf16[1024,64]{1,0} dot(%b, %c), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%ends (d: bf16[4096,64]) -> bf16[4096,64] {
  %d = bf16[4096,64]{1,0} parameter(0)
  %over = s32[] custom-call(), custom_call_target="AsyncCollectiveDone"
  ROOT %there = bf16[4096,64]{1,0} all-gather(%d), replica_groups=[2,2]<=[2,2]T(1,0), dimensions={0}
}

%summed (e: bf16[4096,64], i: s32[]) -> bf16[1024,64] {
  %e = bf16[4096,64]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %total = bf16[4096,64]{1,0} all-reduce(%e), replica_groups={{0,1},{2,3}}, to_apply=%starts
  ROOT %mine = bf16[1024,64]{1,0} dynamic-slice(%total, %i, %i), dynamic_slice_sizes={1024,64}
}

ENTRY %main (p: bf16[1024,64], w: bf16[64,64], i: s32[]) -> bf16[1024,64] {
  %p = bf16[1024,64]{1,0} parameter(0)
  %w = bf16[64,64]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %f1 = bf16[4096,64]{1,0} fusion(%p), kind=kCustom, calls=%starts
  %f2 = bf16[1024,64]{1,0} fusion(%p, %w), kind=kOutput, calls=%carries, backend_config={"window_config":{"estimated_cycles":"300"}}
  %f3 = bf16[4096,64]{1,0} fusion(%f1), kind=kCustom, calls=%ends
  ROOT %f4 = bf16[1024,64]{1,0} fusion(%f3, %i), kind=kCustom, calls=%summed
}
"""
