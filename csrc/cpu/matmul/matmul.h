// Matrix products on the CPU: the library that every op with a product is built on.
//
//   file                what it holds                                          used by
//   operands.h          element types (F32, F64, Bf16), layout of packed       all below
//                       operands
//   transpose.h         transpose of a square of registers; sum of the lanes   packing, few rows
//                       of each
//   packing.h           every function that packs an operand                   drivers and ops
//   microkernel.h       the register tile: portable, AVX2, AVX-512,            large.h, block.h
//                       AVX-512-BF16
//   amx.h               tile registers of AMX and how they are filled          *_amx.h
//   large.h, _amx.h     driver for many rows: both operands packed, blocked    linear_cross_entropy
//                       for the caches
//   block.h, _amx.h     driver for operands that lie in the cache: A in place  attention
//                       with any strides, B packed
//   few_rows.h, _amx.h  driver for few rows of A: C = A B' with the rows of B  linear, attention of
//                       where they are, read once                              few queries
//   weighted_rows.h     C += A B for few rows of A, B where it is              attention of few
//                                                                              queries
//
// Notation: C (m, n) = A (m, k) B (k, n). An element of C is always summed in the same order of k,
// whatever m, n, its place in C and the number of threads: a row's result does not depend on the
// other rows. Sums are kept in float32, of float64 operands in float64. The library starts no
// threads and allocates no memory: ops divide the work and own the buffers.
//
// A new instruction set adds a microkernel and the drivers that use it; drivers choose when they
// are compiled (one copy per instruction set, see isa.h).
#pragma once

#include "cpu/matmul/block.h"
#include "cpu/matmul/few_rows.h"
#include "cpu/matmul/large.h"
#include "cpu/matmul/packing.h"
#include "cpu/matmul/weighted_rows.h"
