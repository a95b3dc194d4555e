// The Python module llama_fast._host. Types and docstrings for readers: llama_fast/_host.pyi.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "constants.h"
#include "host/facts.h"
#include "host/packing.h"

namespace py = pybind11;
namespace host = llama_fast::host;

namespace {

using Lengths = py::array_t<int64_t, py::array::c_style | py::array::forcecast>;

// `value` as a vector of int64. Floating-point lengths are refused, not rounded.
Lengths as_lengths(const py::object& value) {
  const py::array array = py::array::ensure(value);
  if (!array) {
    PyErr_Clear();
    throw py::type_error("lengths: expected a vector of integers, got " +
                         py::cast<std::string>(py::str(py::type::of(value))));
  }
  if (array.ndim() != 1) {
    throw py::value_error("lengths: expected 1 dimension, got " + std::to_string(array.ndim()));
  }
  const char kind = array.dtype().kind();
  if (array.size() > 0 && kind != 'i' && kind != 'u') {
    throw py::type_error("lengths: expected integers, got " +
                         py::cast<std::string>(py::str(array.dtype())));
  }
  return Lengths(array);
}

template <class T>
py::array_t<T> to_array(const std::vector<T>& values) {
  return py::array_t<T>(static_cast<py::ssize_t>(values.size()), values.data());
}

}  // namespace

PYBIND11_MODULE(_host, m) {
  m.doc() = "Build facts, processor features and sequence packing, in C++.";

  m.def("build_info", &host::build_info,
        "What this module was compiled with: compiler, cxx_standard, architecture.");

  m.def("cpu_features", &host::cpu_features,
        "Instruction-set extensions of this processor: name -> present.");

  m.def("constants", &host::constants,
        "Numbers that the C++ kernels and the Python code both hold, as the kernels have them.");

  m.attr("NOT_ENOUGH_MEMORY") = LF_NOT_ENOUGH_MEMORY;

  m.def(
      "pack_sequences",
      [](const py::object& lengths, int64_t capacity) {
        const Lengths values = as_lengths(lengths);
        host::Packing packing;
        {
          const int64_t* data = values.data();
          const int64_t n = values.size();
          py::gil_scoped_release release;
          packing = host::pack_sequences(data, n, capacity);
        }
        return py::make_tuple(to_array(packing.bin_of), packing.n_bins);
      },
      py::arg("lengths"), py::arg("capacity"),
      "Best-fit-decreasing packing of sequences into bins of `capacity` tokens.\n\n"
      "Args: lengths (n,) integers; capacity, tokens in a bin.\n"
      "Returns: (bin_of, n_bins): for each sequence its bin, int64 (n,), and how many there are.\n"
      "Never more bins than packing in the order given; the same input gives the same output.\n"
      "Raises: ValueError for a negative length or one over the capacity.");

  m.def(
      "cu_seqlens",
      [](const py::object& lengths) {
        const Lengths values = as_lengths(lengths);
        return to_array(host::cu_seqlens(values.data(), values.size()));
      },
      py::arg("lengths"),
      "Cumulative lengths 0, l0, l0+l1, ... as int32 (n+1,), the form that packed attention "
      "takes.\n\nRaises: ValueError for a negative length or a sum over the range of int32.");
}
