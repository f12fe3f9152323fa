"""A hand-written scheduled program whose costs are known: eight steps of gather, product and update on eight chips."""

WIDTH, DEPTH, STEPS = 2048, 8, 8
COORDINATES = tuple((x, 0, 0) for x in range(8))
KIND, CORES = "TPU v5", 2

TEXT = """HloModule small, is_scheduled=true

%product (a.0: bf16[2048,2048], b.0: bf16[2048,2048]) -> bf16[2048,2048] {
  %a.0 = bf16[2048,2048]{1,0} parameter(0)
  %b.0 = bf16[2048,2048]{1,0} parameter(1)
  ROOT %c.0 = bf16[2048,2048]{1,0} convolution(%a.0, %b.0), dim_labels=bf_io->bf
}

%layer (a.1: bf16[8,2048,2048], b.1: s32[]) -> bf16[1,2048,2048] {
  %a.1 = bf16[8,2048,2048]{2,1,0} parameter(0)
  %b.1 = s32[] parameter(1)
  %zero.1 = s32[] constant(0)
  ROOT %c.1 = bf16[1,2048,2048]{2,1,0} dynamic-slice(%a.1, %b.1, %zero.1, %zero.1), dynamic_slice_sizes={1,2048,2048}
}

%keep (a.2: bf16[8,2048,2048], b.2: bf16[2048,2048], i.2: s32[]) -> bf16[8,2048,2048] {
  %a.2 = bf16[8,2048,2048]{2,1,0} parameter(0)
  %b.2 = bf16[2048,2048]{1,0} parameter(1)
  %i.2 = s32[] parameter(2)
  %zero.2 = s32[] constant(0)
  %row.2 = bf16[1,2048,2048]{2,1,0} bitcast(%b.2)
  ROOT %c.2 = bf16[8,2048,2048]{2,1,0} dynamic-update-slice(%a.2, %row.2, %i.2, %zero.2, %zero.2)
}

%condition (p.3: (s32[], bf16[2048,2048], bf16[8,2048,2048], bf16[8,2048,2048])) -> pred[] {
  %limit.3 = s32[] constant(8)
  %p.3 = (s32[], bf16[2048,2048]{1,0}, bf16[8,2048,2048]{2,1,0}, bf16[8,2048,2048]{2,1,0}) parameter(0)
  %i.3 = s32[] get-tuple-element(%p.3), index=0
  ROOT %less.3 = pred[] compare(%i.3, %limit.3), direction=LT
}

%body (p.4: (s32[], bf16[2048,2048], bf16[8,2048,2048], bf16[8,2048,2048])) -> (s32[], bf16[2048,2048], bf16[8,2048,2048], bf16[8,2048,2048]) {
  %p.4 = (s32[], bf16[2048,2048]{1,0}, bf16[8,2048,2048]{2,1,0}, bf16[8,2048,2048]{2,1,0}) parameter(0)
  %i.4 = s32[] get-tuple-element(%p.4), index=0
  %x.4 = bf16[2048,2048]{1,0} get-tuple-element(%p.4), index=1
  %weights.4 = bf16[8,2048,2048]{2,1,0} get-tuple-element(%p.4), index=2
  %kept.4 = bf16[8,2048,2048]{2,1,0} get-tuple-element(%p.4), index=3
  %slice.4 = bf16[1,2048,2048]{2,1,0} fusion(%weights.4, %i.4), kind=kLoop, calls=%layer
  %gather-start.4 = (bf16[256,2048]{1,0}, bf16[2048,2048]{1,0}) all-gather-start(%x.4), channel_id=1, replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}
  %matmul.4 = bf16[2048,2048]{1,0} fusion(%x.4, %slice.4), kind=kOutput, calls=%product, metadata={op_name="jit(step)/mlp/dot_general"}, backend_config={"window_config":{"estimated_cycles":"70000"}}
  %gather-done.4 = bf16[2048,2048]{1,0} all-gather-done(%gather-start.4)
  %keep.4 = bf16[8,2048,2048]{2,1,0} fusion(%kept.4, %matmul.4, %i.4), kind=kLoop, calls=%keep
  %one.4 = s32[] constant(1)
  %next.4 = s32[] add(%i.4, %one.4)
  ROOT %t.4 = (s32[], bf16[2048,2048]{1,0}, bf16[8,2048,2048]{2,1,0}, bf16[8,2048,2048]{2,1,0}) tuple(%next.4, %matmul.4, %weights.4, %keep.4)
}

ENTRY %main (x: bf16[2048,2048], weights: bf16[8,2048,2048], kept: bf16[8,2048,2048]) -> bf16[2048,2048] {
  %x = bf16[2048,2048]{1,0} parameter(0)
  %weights = bf16[8,2048,2048]{2,1,0} parameter(1)
  %kept = bf16[8,2048,2048]{2,1,0} parameter(2)
  %zero = s32[] constant(0)
  %start = (s32[], bf16[2048,2048]{1,0}, bf16[8,2048,2048]{2,1,0}, bf16[8,2048,2048]{2,1,0}) tuple(%zero, %x, %weights, %kept)
  %loop = (s32[], bf16[2048,2048]{1,0}, bf16[8,2048,2048]{2,1,0}, bf16[8,2048,2048]{2,1,0}) while(%start), condition=%condition, body=%body
  ROOT %result = bf16[2048,2048]{1,0} get-tuple-element(%loop), index=1
}
"""  # noqa: E501
