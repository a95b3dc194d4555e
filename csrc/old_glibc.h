// Included before every source (build_native.py), so that a library that is compiled on a new
// system also loads on systems down to glibc 2.28, as wheels have to (the tag manylinux_2_28).
//
// The linker binds a function to its newest version in the glibc of the compiling system. The
// functions below have versions that are newer than glibc 2.28; here they get their first ones.
// `make wheels` fails if another such function is used.
#pragma once

#if defined(__linux__) && __has_include(<features.h>)
#include <features.h>
#endif

#if defined(__GLIBC__) && (defined(__x86_64__) || defined(__aarch64__))
#if defined(__x86_64__)
#define LF_FIRST_GLIBC "GLIBC_2.2.5"
#else
#define LF_FIRST_GLIBC "GLIBC_2.17"
#endif

__asm__(".symver dlsym,dlsym@" LF_FIRST_GLIBC);
__asm__(".symver exp,exp@" LF_FIRST_GLIBC);
__asm__(".symver log,log@" LF_FIRST_GLIBC);

// Of glibc 2.32, where it is true until a process starts its first thread. libstdc++ reads it to
// count references without atomic instructions. Here it is a variable of the library, always false.
extern "C" {
__attribute__((weak, visibility("hidden"))) char __libc_single_threaded = 0;
}
#endif
