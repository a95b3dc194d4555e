// The instruction set that a kernel source is being compiled for.
//
// Every csrc/cpu/<op>.cpp is compiled once per instruction set, with LLAMA_FAST_ISA set to the
// name of its namespace (portable, avx2, avx512, avx512_bf16, amx_bf16; on 64-bit Arm neon and
// neon_bf16) and the matching compiler flags.
// Kernel code lives in `namespace llama_fast::LLAMA_FAST_ISA`, so the copies never collide.
#pragma once

#ifndef LLAMA_FAST_ISA
#error "compile with -DLLAMA_FAST_ISA=portable|avx2|avx512|avx512_bf16|amx_bf16|neon|neon_bf16"
#endif

// Always inlined, so that the linker cannot pick a copy compiled for a newer instruction set.
#define LF_INLINE inline __attribute__((always_inline))
// Compiled once for all callers, so that it rounds the same in all of them: whether the compiler
// contracts a product and a sum into one operation depends on the code around them.
#if defined(__clang__)
#define LF_APART __attribute__((noinline))
#else
#define LF_APART __attribute__((noinline, noclone))
#endif
#define LF_LAMBDA __attribute__((always_inline))
