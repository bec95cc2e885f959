// Native errors become the classes of xccl/errors.py, with their fields. The class is found by the status's name, so
// a status without a class is an error in a test, not a wrong class for the user.
#include "python/support.hpp"

namespace xccl::python {

void set_python_error(const Error& error) {
  const py::object type =
      py::module_::import("xccl.errors").attr("class_of_status")(status_name(error.status));
  // An error's text may come from another rank, cut off in the middle of a character.
  const std::string text = error.what();
  const auto message = py::reinterpret_steal<py::object>(
      PyUnicode_DecodeUTF8(text.data(), static_cast<py::ssize_t>(text.size()), "replace"));
  const py::object value = type(message, py::arg("op") = error.op, py::arg("seq") = error.seq,
                                py::arg("phase") = error.phase, py::arg("ranks") = error.ranks);
  PyErr_SetObject(type.ptr(), value.ptr());
}

void bind_errors(py::module_& m) {
  m.def("status_list", [] {
    py::list out;
#define XCCL_STATUS_PAIR(name, c_name, text) out.append(py::make_tuple(#name, text));
    XCCL_STATUS_LIST(XCCL_STATUS_PAIR)
#undef XCCL_STATUS_PAIR
    return out;
  });
  m.def("raise_status", [](int status) {
    throw Error(static_cast<Status>(status), "raised for a test", {3}).during("test", 7, "phase");
  });

  py::register_exception_translator([](std::exception_ptr thrown) {
    try {
      if (thrown) std::rethrow_exception(thrown);
    } catch (const Error& error) {
      set_python_error(error);
    }
  });
}

}  // namespace xccl::python
