// What the bindings have in common: calls that release the GIL, checked arrays, arrays over native memory.
// Used by bind_*.cpp only.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <initializer_list>
#include <memory>
#include <string>
#include <vector>

#include "base/error.hpp"
#include "group/world.hpp"
#include "sync/wait.hpp"

namespace py = pybind11;

namespace xccl::python {

// Releases the GIL for a native call, and lets its waits see Ctrl-C: then KeyboardInterrupt leaves the call.
class Blocking {
 public:
  Blocking() : before_(interrupt_check) { interrupt_check = &check; }
  ~Blocking() { interrupt_check = before_; }
  Blocking(const Blocking&) = delete;
  Blocking& operator=(const Blocking&) = delete;

 private:
  static void check() {
    const py::gil_scoped_acquire gil;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
  }
  void (*before_)();
  py::gil_scoped_release release_;
};

// InvalidArgument, naming the argument, unless `array` has this dtype and shape (-1: any), is C-contiguous and aligned.
void require_array(const char* name, const py::array& array, const py::dtype& dtype,
                   std::initializer_list<int64_t> shape, bool written = false);

// An array over memory that `owner` keeps alive.
template <class Owner>
py::array array_over(const void* memory, const py::dtype& dtype, std::vector<py::ssize_t> shape,
                     std::shared_ptr<Owner> owner) {
  auto* held = new std::shared_ptr<Owner>(std::move(owner));
  const py::capsule base(held, [](void* p) { delete static_cast<std::shared_ptr<Owner>*>(p); });
  return py::array(dtype, std::move(shape), memory, base);
}

// The exception of xccl.errors for this status, with its fields, becomes Python's current error.
void set_python_error(const Error& error);

// Arrays (count, total, longest) of so many rows, the latter two in seconds.
py::tuple wait_matrix(const std::vector<WaitCount>& waits, py::ssize_t rows);

void bind_hot(py::module_& m);
void bind_machine(py::module_& m);
void bind_observe(py::module_& m);
void bind_errors(py::module_& m);
void bind_dlpack(py::module_& m);
void bind_launch(py::module_& m);
void bind_communicator(py::module_& m);
void bind_collective(py::module_& m);
void bind_expert_parallel(py::module_& m);

}  // namespace xccl::python
