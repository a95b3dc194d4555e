// Functions that came to libstdc++ after GCC 8, and that headers of later compilers call. Defined
// here, the library loads with the libstdc++ of GCC 8 (the tag manylinux_2_28). It would otherwise
// use torch's copies, which its libraries export by accident.
#include <new>
#include <sstream>

#if defined(__GLIBCXX__)
template std::basic_ostringstream<char>::basic_ostringstream();
template std::basic_stringstream<char>::basic_stringstream();

namespace std {
[[noreturn]] void __throw_bad_array_new_length() { throw bad_array_new_length(); }
}  // namespace std

// libstdc++ declares them visible. For the linker that would count more than csrc/exports.map.
#define LF_HIDE(function) __asm__(".hidden " #function)
LF_HIDE(_ZNSt7__cxx1119basic_ostringstreamIcSt11char_traitsIcESaIcEEC1Ev);
LF_HIDE(_ZNSt7__cxx1119basic_ostringstreamIcSt11char_traitsIcESaIcEEC2Ev);
LF_HIDE(_ZNSt7__cxx1118basic_stringstreamIcSt11char_traitsIcESaIcEEC1Ev);
LF_HIDE(_ZNSt7__cxx1118basic_stringstreamIcSt11char_traitsIcESaIcEEC2Ev);
LF_HIDE(_ZSt28__throw_bad_array_new_lengthv);
#endif
