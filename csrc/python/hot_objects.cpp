// What the point-to-point calls return: Status, Request and View.
#include "python/hot.hpp"

namespace xccl::python {
namespace {

// --- Status: a named tuple made natively ---

PyStructSequence_Field status_fields[] = {
    {"src", "Rank the message came from."},
    {"tag", "Its tag."},
    {"nbytes", "Its size in bytes."},
    {nullptr, nullptr},
};
PyStructSequence_Desc status_description = {"xccl.Status", "What a receive tells about its message.",
                                            status_fields, 3};
PyTypeObject* status_type = nullptr;

// --- Request ---

struct RequestObject {
  PyObject_HEAD std::shared_ptr<PointToPoint> p2p;
  std::shared_ptr<Request> request;
};
PyTypeObject* request_type = nullptr;

RequestObject& request_of(PyObject* self) { return *reinterpret_cast<RequestObject*>(self); }

PyObject* request_wait(PyObject* self, PyObject* const* args, Py_ssize_t count, PyObject* keywords) {
  return guarded([&] {
    static constexpr const char* names[] = {"timeout"};
    const Arguments given("wait", names, 1, 0, args, count, keywords);
    const double timeout = given.timeout(0);
    RequestObject& held = request_of(self);
    MessageInfo info;
    {
      const ShortCall call(held.request->bytes);
      info = held.p2p->wait(*held.request, timeout);
    }
    return make_status(info);
  });
}

PyObject* request_test(PyObject* self, PyObject*) {
  return guarded([&]() -> PyObject* {
    RequestObject& held = request_of(self);
    bool finished = false;
    {
      const ShortCall call(held.request->bytes);
      finished = held.p2p->test(*held.request);
    }
    return PyBool_FromLong(finished);
  });
}

PyObject* request_cancel(PyObject* self, PyObject*) {
  return guarded([&]() -> PyObject* {
    RequestObject& held = request_of(self);
    bool withdrawn = false;
    {
      const ShortCall call(held.request->bytes);
      withdrawn = held.p2p->cancel(*held.request);
    }
    return PyBool_FromLong(withdrawn);
  });
}

PyObject* request_done(PyObject* self, void*) {
  return PyBool_FromLong(request_of(self).request->finished());
}

void request_deallocate(PyObject* self) {
  PyTypeObject* type = Py_TYPE(self);
  RequestObject& held = request_of(self);
  std::destroy_at(&held.request);
  let_go(held.p2p);
  std::destroy_at(&held.p2p);
  type->tp_free(self);
  Py_DECREF(type);
}

PyMethodDef request_methods[] = {
    {"wait", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(request_wait)),
     METH_FASTCALL | METH_KEYWORDS,
     "wait($self, timeout=None)\n--\n\n"
     "Waits until the request has finished and returns its Status; raises its error, such as Truncated.\n"
     "Timeout leaves the request as it is: wait again."},
    {"test", request_test, METH_NOARGS,
     "test($self)\n--\n\nWhether the request has finished, after letting it make progress; raises its "
     "error."},
    {"cancel", request_cancel, METH_NOARGS,
     "cancel($self)\n--\n\n"
     "Takes the request back while nothing has matched it. True: nothing was sent or received, nor ever will "
     "be,\n"
     "the array is free, and wait() raises Closed. False: it is too late, for the message has been matched, "
     "or\n"
     "buffered, as small sends are at once; wait for it. Never waits."},
    {nullptr, nullptr, 0, nullptr},
};
PyGetSetDef request_properties[] = {
    {"done", request_done, nullptr, "Whether it has finished, without making progress.", nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr},
};
PyType_Slot request_slots[] = {
    {Py_tp_methods, request_methods},
    {Py_tp_getset, request_properties},
    {Py_tp_dealloc, reinterpret_cast<void*>(request_deallocate)},
    {Py_tp_doc,
     const_cast<char*>("A send or receive under way. Dropping it does not cancel it; cancel() does.")},
    {0, nullptr},
};
PyType_Spec request_spec = {"xccl.Request", sizeof(RequestObject), 0,
                            Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, request_slots};

// --- View ---

struct ViewObject {
  PyObject_HEAD std::shared_ptr<PointToPoint> p2p;
  std::shared_ptr<View> view;  // null once released; arrays then keep the memory, but not what it holds
  MessageInfo info;
  PyObject* array;  // null once released
};
PyTypeObject* view_type = nullptr;

ViewObject& view_of(PyObject* self) { return *reinterpret_cast<ViewObject*>(self); }

PyObject* view_array(PyObject* self) {
  PyObject* array = view_of(self).array;
  if (!array) {
    set_python_error(Error(Status::InvalidArgument, "the view has been released"));
    return nullptr;
  }
  return Py_NewRef(array);
}

// The message goes back when the last array over it has gone, or at once if it is released.
void let_go_of_message(ViewObject& held) {
  Py_CLEAR(held.array);
  if (!held.view) return;
  held.view.reset();
  held.p2p->try_advance();  // tells the sender
}

PyObject* view_enter(PyObject* self, PyObject*) { return view_array(self); }
PyObject* view_release(PyObject* self, PyObject*) {
  ViewObject& held = view_of(self);
  // release: what was read of the message was read before.
  if (held.view) held.view->released.store(true, std::memory_order_release);
  let_go_of_message(held);
  Py_RETURN_NONE;
}
PyObject* view_exit(PyObject* self, PyObject* const*, Py_ssize_t) { return view_release(self, nullptr); }
PyObject* view_get_array(PyObject* self, void*) { return view_array(self); }
PyObject* view_src(PyObject* self, void*) { return PyLong_FromLong(view_of(self).info.source); }
PyObject* view_tag(PyObject* self, void*) { return PyLong_FromLong(view_of(self).info.tag); }
PyObject* view_nbytes(PyObject* self, void*) { return PyLong_FromUnsignedLongLong(view_of(self).info.bytes); }

void view_deallocate(PyObject* self) {
  PyTypeObject* type = Py_TYPE(self);
  ViewObject& held = view_of(self);
  let_go_of_message(held);
  std::destroy_at(&held.view);
  let_go(held.p2p);
  std::destroy_at(&held.p2p);
  type->tp_free(self);
  Py_DECREF(type);
}

PyMethodDef view_methods[] = {
    {"__enter__", view_enter, METH_NOARGS, "The array."},
    {"__exit__", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(view_exit)), METH_FASTCALL,
     "Releases the view."},
    {"release", view_release, METH_NOARGS,
     "release($self)\n--\n\nGives the message back. Arrays over it must not be used any more. Safe to call "
     "twice."},
    {nullptr, nullptr, 0, nullptr},
};
PyGetSetDef view_properties[] = {
    {"array", view_get_array, nullptr, "The message, a read-only array.", nullptr},
    {"src", view_src, nullptr, "Rank the message came from.", nullptr},
    {"tag", view_tag, nullptr, "Its tag.", nullptr},
    {"nbytes", view_nbytes, nullptr, "Its size in bytes.", nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr},
};
PyType_Slot view_slots[] = {
    {Py_tp_methods, view_methods},
    {Py_tp_getset, view_properties},
    {Py_tp_dealloc, reinterpret_cast<void*>(view_deallocate)},
    {Py_tp_doc,
     const_cast<char*>(
         "A borrowed message; `with view as array:` releases it at the end of the block. Without a "
         "block it goes\nback with release(), or with the view and all arrays over it. It is valid until "
         "then, or until "
         "its communicator is closed.")},
    {0, nullptr},
};
PyType_Spec view_spec = {"xccl.View", sizeof(ViewObject), 0,
                         Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, view_slots};

PyTypeObject* make_type(PyType_Spec& spec) {
  auto* type = reinterpret_cast<PyTypeObject*>(PyType_FromSpec(&spec));
  if (!type) throw py::error_already_set();
  return type;
}

}  // namespace

PyObject* make_status(const MessageInfo& info) {
  PyObject* out = PyStructSequence_New(status_type);
  if (!out) throw py::error_already_set();
  PyStructSequence_SetItem(out, 0, PyLong_FromLong(info.source));
  PyStructSequence_SetItem(out, 1, PyLong_FromLong(info.tag));
  PyStructSequence_SetItem(out, 2, PyLong_FromUnsignedLongLong(info.bytes));
  return out;
}

PyObject* make_request(std::shared_ptr<PointToPoint> p2p, std::shared_ptr<Request> request) {
  PyObject* self = request_type->tp_alloc(request_type, 0);
  if (!self) throw py::error_already_set();
  std::construct_at(&request_of(self).p2p, std::move(p2p));
  std::construct_at(&request_of(self).request, std::move(request));
  return self;
}

PyObject* make_view(std::shared_ptr<PointToPoint> p2p, std::shared_ptr<View> view, const py::dtype& dtype,
                    std::vector<py::ssize_t> shape) {
  const MessageInfo info = view->info;
  const std::byte* data = view->data;
  py::array array = array_over(data, dtype, std::move(shape), view);
  py::detail::array_proxy(array.ptr())->flags &= ~py::detail::npy_api::NPY_ARRAY_WRITEABLE_;
  PyObject* self = view_type->tp_alloc(view_type, 0);
  if (!self) throw py::error_already_set();
  ViewObject& held = view_of(self);
  std::construct_at(&held.p2p, std::move(p2p));
  std::construct_at(&held.view, std::move(view));
  held.info = info;
  held.array = array.release().ptr();
  return self;
}

void add_hot_objects(py::module_& m) {
  status_type = PyStructSequence_NewType(&status_description);
  if (!status_type) throw py::error_already_set();
  request_type = make_type(request_spec);
  view_type = make_type(view_spec);
  m.attr("Status") = py::reinterpret_borrow<py::object>(reinterpret_cast<PyObject*>(status_type));
  m.attr("Request") = py::reinterpret_borrow<py::object>(reinterpret_cast<PyObject*>(request_type));
  m.attr("View") = py::reinterpret_borrow<py::object>(reinterpret_cast<PyObject*>(view_type));
}

}  // namespace xccl::python
