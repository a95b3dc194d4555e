// The instruction set that a kernel source is being compiled for.
//
// Every csrc/cpu/<op>.cpp is compiled once per instruction set, with LLAMA_FAST_ISA set to the
// name of its namespace (portable, avx2, avx512, avx512_bf16, amx_bf16) and the matching compiler
// flags.
// Kernel code lives in `namespace llama_fast::LLAMA_FAST_ISA`, so the copies never collide.
#pragma once

#ifndef LLAMA_FAST_ISA
#error "compile with -DLLAMA_FAST_ISA=portable|avx2|avx512|avx512_bf16|amx_bf16"
#endif

// Fully inlined, so that no copy compiled for a newer instruction set can be picked by the linker.
#define LF_INLINE inline __attribute__((always_inline))
// One piece of code for every caller, so that it rounds alike in all of them: where a compiler puts
// a product and a sum into one operation depends on what stands around them.
#if defined(__clang__)
#define LF_APART __attribute__((noinline))
#else
#define LF_APART __attribute__((noinline, noclone))
#endif
#define LF_LAMBDA __attribute__((always_inline))
