// What the raw vectorcall methods have in common: arguments, arrays, errors, and when to give up the GIL.
// Used by hot.cpp and hot_objects.cpp only. They are written against Python's C API, because a call through pybind11
// costs more than a small message takes to arrive.
#pragma once

#include <cstdint>
#include <exception>
#include <memory>

#include "p2p/point_to_point.hpp"
#include "python/support.hpp"

namespace xccl::python {

// A short call keeps the GIL while it may be over at once and releases it for a long wait; one that moves much data
// releases it from the beginning. Waits see Ctrl-C.
class ShortCall {
 public:
  explicit ShortCall(uint64_t bytes);
  ~ShortCall();
  ShortCall(const ShortCall&) = delete;
  ShortCall& operator=(const ShortCall&) = delete;

 private:
  void (*interrupt_before_)();
  void (*long_wait_before_)(bool);
  PyThreadState* released_ = nullptr;
};

// The arguments of a METH_FASTCALL | METH_KEYWORDS call, by position in `names`.
class Arguments {
 public:
  static constexpr int most = 8;
  // Raises TypeError (as an exception) for unknown, repeated or too many ones, and for a missing one of the first
  // `required`.
  Arguments(const char* function, const char* const* names, int count, int required, PyObject* const* args,
            Py_ssize_t positional, PyObject* keyword_names);

  PyObject* operator[](int i) const { return values_[i]; }  // borrowed; null when not given
  bool given(int i) const { return values_[i] && values_[i] != Py_None; }
  int integer(int i, int otherwise) const;
  double timeout(int i) const;  // seconds; -1 when not given

 private:
  const char* const* names_;
  PyObject* values_[most] = {};
};

// Memory of an array argument: C-contiguous, and writable where asked.
struct ArrayArgument {
  py::object owner;
  void* data;
  uint64_t bytes;

  ArrayArgument(const char* name, PyObject* value, bool written);
  // Keeps the array alive for the engine, which may drop it in any thread. Takes the GIL.
  std::shared_ptr<void> keep() const;
};

// Runs f and turns what it throws into Python's current error.
template <class F>
PyObject* guarded(F f) noexcept {
  try {
    return f();
  } catch (py::error_already_set& error) {
    error.restore();
  } catch (const Error& error) {
    set_python_error(error);
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

// Lets go of the communicator's messages. The last owner does so without the GIL: their end waits for threads that are
// making progress on them, and those may be waiting for the GIL in order to let go of an array.
void let_go(std::shared_ptr<PointToPoint>& p2p);

// --- hot_objects.cpp: what the calls return ---
PyObject* make_status(const MessageInfo& info);
PyObject* make_request(std::shared_ptr<PointToPoint> p2p, std::shared_ptr<Request> request);
PyObject* make_view(std::shared_ptr<PointToPoint> p2p, std::shared_ptr<View> view, const py::dtype& dtype,
                    std::vector<py::ssize_t> shape);
void add_hot_objects(py::module_& m);

}  // namespace xccl::python
