"""The machine code that walks boosted trees: one small function for any model, made when a process first asks for it.

Stage: ranking; scoring on both tracks. In: nothing but the width of a lane. Out: a `TreeKernel`, a function of arrays.
Absent: LightGBM and what its trees mean (`compiled`), and any machine code on disk: a bundle holds none.

The function is QuickScorer, with feature values of many rows in one vector. A tree with n leaves is n - 1 comparisons
in any order: the leaves of a row are the bits of a word, all set at first; where a row goes right at a node, the leaves
on the node's left are struck out. The lowest bit that is left is the row's leaf, counted from the left. Nothing
branches on the data, so a batch of hard rows takes as long as one of easy rows.

Trees are data here, not code. The usual way, a function for each tree, took seconds to compile for 300 trees and was
slower (docs/adr/0019).

Source: C. Lucchese and others, QuickScorer: A Fast Algorithm to Rank Documents with Additive Ensembles of Regression
Trees, SIGIR 2015; the same with vectors of rows, SIGIR 2016.

Shapes: F features, R rows in whole blocks of BLOCK, T trees, J nodes of all trees, W bits of a lane.
"""

import ctypes
from dataclasses import dataclass
from functools import lru_cache
from string import Template
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from recsys.arrays import DoubleArray, FloatArray, IntArray

BLOCK: Final = 32  # rows at once; measured against 8, 16 and 64, with 256-bit and with 512-bit registers
LANES: Final = (32, 64)  # W that there is a kernel for: trees with at most as many leaves

_LOOP = Template("""
$loop:
  %$loop.j = phi i64 [ $first, %$before ], [ %$loop.next, %$loop.node ]
  %$loop.alive = phi <$block x i$bits> [ $start, %$before ], [ %$loop.left, %$loop.node ]
  %$loop.done = icmp eq i64 %$loop.j, $last
  br i1 %$loop.done, label %$after, label %$loop.node
$loop.node:
  %$loop.feature.at = getelementptr i64, ptr %feature, i64 %$loop.j
  %$loop.feature = load i64, ptr %$loop.feature.at
  %$loop.offset = mul i64 %$loop.feature, %rows
  %$loop.value.at = getelementptr float, ptr %column, i64 %$loop.offset
  %$loop.value = load <$block x float>, ptr %$loop.value.at, align 4
  %$loop.threshold.at = getelementptr float, ptr %threshold, i64 %$loop.j
  %$loop.threshold = load float, ptr %$loop.threshold.at
  %$loop.t1 = insertelement <$block x float> poison, float %$loop.threshold, i64 0
  %$loop.t = shufflevector <$block x float> %$loop.t1, <$block x float> poison, <$block x i32> zeroinitializer
  %$loop.kept.at = getelementptr i$bits, ptr %kept, i64 %$loop.j
  %$loop.kept = load i$bits, ptr %$loop.kept.at
  %$loop.m1 = insertelement <$block x i$bits> poison, i$bits %$loop.kept, i64 0
  %$loop.m = shufflevector <$block x i$bits> %$loop.m1, <$block x i$bits> poison, <$block x i32> zeroinitializer
  %$loop.right = fcmp $right <$block x float> %$loop.value, %$loop.t
  %$loop.keep = select <$block x i1> %$loop.right, <$block x i$bits> %$loop.m, <$block x i$bits> splat (i$bits -1)
  %$loop.left = and <$block x i$bits> %$loop.alive, %$loop.keep
  %$loop.next = add i64 %$loop.j, 1
  br label %$loop
""")

_FUNCTION = Template("""
declare <$block x i$bits> @llvm.cttz.v${block}i$bits(<$block x i$bits>, i1)
declare <$block x double> @llvm.masked.gather.v${block}f64.v${block}p0(
    <$block x ptr>, i32, <$block x i1>, <$block x double>)

define void @score(
    ptr noalias %columns, i64 %rows, i64 %trees, ptr noalias %bounds, ptr noalias %feature, ptr noalias %threshold,
    ptr noalias %kept, ptr noalias %leaf, i64 %leaves, ptr noalias %out) {
entry:
  br label %block
block:
  %row = phi i64 [ 0, %entry ], [ %row.next, %block.end ]
  %finished = icmp uge i64 %row, %rows
  br i1 %finished, label %exit, label %block.start
block.start:
  %column = getelementptr float, ptr %columns, i64 %row
  br label %forest
forest:
  %t = phi i64 [ 0, %block.start ], [ %t.next, %exits ]
  %sum = phi <$block x double> [ zeroinitializer, %block.start ], [ %sum.next, %exits ]
  %t.done = icmp eq i64 %t, %trees
  br i1 %t.done, label %block.end, label %tree
tree:
  %bounds.row = mul i64 %t, 3
  %first.at = getelementptr i64, ptr %bounds, i64 %bounds.row
  %first = load i64, ptr %first.at
  %middle.at = getelementptr i64, ptr %first.at, i64 1
  %middle = load i64, ptr %middle.at
  %last.at = getelementptr i64, ptr %first.at, i64 2
  %last = load i64, ptr %last.at
  br label %ordered
; a missing value is not greater than anything at the first nodes of a tree, and goes left
$ordered
; and counts as greater at the others, and goes right
$unordered
exits:
  %at = call <$block x i$bits> @llvm.cttz.v${block}i$bits(<$block x i$bits> %unordered.alive, i1 true)
  %leaf.row = mul i64 %t, %leaves
  %leaf.first = getelementptr double, ptr %leaf, i64 %leaf.row
  %leaf.at = getelementptr double, ptr %leaf.first, <$block x i$bits> %at
  %value = call <$block x double> @llvm.masked.gather.v${block}f64.v${block}p0(
      <$block x ptr> %leaf.at, i32 8, <$block x i1> splat (i1 true), <$block x double> zeroinitializer)
  %sum.next = fadd <$block x double> %sum, %value
  %t.next = add i64 %t, 1
  br label %forest
block.end:
  %out.at = getelementptr double, ptr %out, i64 %row
  store <$block x double> %sum, ptr %out.at, align 8
  %row.next = add i64 %row, $block
  br label %block
exit:
  ret void
}
""")


def kernel_ir(bits: int) -> str:
    """The function as LLVM's assembly language, for lanes of `bits` bits."""
    every = f"splat (i{bits} -1)"
    ordered = {"loop": "ordered", "first": "%first", "last": "%middle", "before": "tree", "after": "unordered"}
    unordered = {"loop": "unordered", "first": "%middle", "last": "%last", "before": "ordered", "after": "exits"}
    return _FUNCTION.substitute(
        block=BLOCK,
        bits=bits,
        ordered=_LOOP.substitute(ordered, start=every, right="ogt", block=BLOCK, bits=bits),
        unordered=_LOOP.substitute(unordered, start="%ordered.alive", right="ugt", block=BLOCK, bits=bits),
    )


@dataclass(frozen=True)
class TreeKernel:
    """bits: most leaves of a tree. `engine` owns the machine code that `function` points to."""

    bits: int
    function: Any
    engine: Any

    def __call__(
        self,
        columns: FloatArray,
        bounds: IntArray,
        feature: IntArray,
        threshold: FloatArray,
        kept: npt.NDArray[np.signedinteger[Any]],
        leaf: DoubleArray,
    ) -> DoubleArray:
        """(R,) sums of the trees, in their order. The interpreter lock is not held meanwhile.

        columns   (F, R) float32; R is a multiple of BLOCK
        bounds    (T, 3) int64: a tree's first node, its first node at which a missing value goes right, and its end
        feature   (J,) int64; threshold (J,) float32: a row goes left where its value is not greater
        kept      (J,) integers of W bits: the leaves that remain where a row goes right
        leaf      (T, at most W) float64, from the left

        All must be C-contiguous: addresses are passed, and nothing is checked here.
        """
        out = np.empty(columns.shape[1])
        # fmt: off
        self.function(columns.ctypes.data, columns.shape[1], len(bounds), bounds.ctypes.data, feature.ctypes.data,
                      threshold.ctypes.data, kept.ctypes.data, leaf.ctypes.data, leaf.shape[1], out.ctypes.data)
        # fmt: on
        return out


@lru_cache
def tree_kernel(bits: int) -> TreeKernel:
    """Compiled for this machine's processor, once a process. `bits` is one of LANES.

    Raises ImportError or RuntimeError, llvmlite's own, where LLVM cannot be had.
    """
    from llvmlite import binding as llvm  # 60 to 90 ms, which only a process that scores has to spend

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3
    )
    module = llvm.parse_assembly(kernel_ir(bits))
    module.verify()
    passes = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=2))
    passes.getModulePassManager().run(module, passes)
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    prototype = ctypes.CFUNCTYPE(None, pointer, number, number, *[pointer] * 5, number, pointer)
    return TreeKernel(bits, prototype(engine.get_function_address("score")), engine)
