// The point-to-point calls as methods of _core.Messages, the base class of xccl.Communicator.
#include "python/hot.hpp"

#include <cmath>
#include <cstring>

namespace xccl::python {
namespace {

constexpr uint64_t much_data = 64 * 1024;  // bytes; copying them takes longer than handing over the GIL

void check_signals() {
  const py::gil_scoped_acquire gil;
  if (PyErr_CheckSignals() != 0) throw py::error_already_set();
}

// Of this thread, while a wait is without the GIL. A signal handler that Python runs in that wait may wait itself: what it
// saves is the same state, which stays here for the wait outside.
thread_local PyThreadState* saved = nullptr;

void release_for_long_wait(bool begins) {
  if (begins)
    saved = PyEval_SaveThread();
  else
    PyEval_RestoreThread(saved);
}

struct Messages {
  PyObject_HEAD std::shared_ptr<PointToPoint>* p2p;
};

const std::shared_ptr<PointToPoint>& p2p_of(PyObject* self) {
  auto* held = reinterpret_cast<Messages*>(self)->p2p;
  if (!held) fail(Status::Closed, "this communicator was never made");
  return *held;
}

}  // namespace

ShortCall::ShortCall(uint64_t bytes) : interrupt_before_(interrupt_check), long_wait_before_(long_wait) {
  interrupt_check = &check_signals;
  if (bytes > much_data) {
    long_wait = nullptr;
    released_ = PyEval_SaveThread();
  } else {
    long_wait = &release_for_long_wait;
  }
}

ShortCall::~ShortCall() {
  if (released_) PyEval_RestoreThread(released_);
  interrupt_check = interrupt_before_;
  long_wait = long_wait_before_;
}

void let_go(std::shared_ptr<PointToPoint>& p2p) {
  if (p2p.use_count() > 1) return p2p.reset();
  PyThreadState* state = PyEval_SaveThread();
  p2p.reset();
  PyEval_RestoreThread(state);
}

Arguments::Arguments(const char* function, const char* const* names, int count, int required,
                     PyObject* const* args, Py_ssize_t positional, PyObject* keyword_names)
    : names_(names) {
  const auto refuse = [&](const char* what, const char* which) {
    PyErr_Format(PyExc_TypeError, "%s() %s%s", function, what, which);
    throw py::error_already_set();
  };
  if (positional > count) refuse("got too many arguments", "");
  for (Py_ssize_t i = 0; i < positional; ++i) values_[i] = args[i];
  const Py_ssize_t keywords = keyword_names ? PyTuple_GET_SIZE(keyword_names) : 0;
  for (Py_ssize_t k = 0; k < keywords; ++k) {
    const char* name = PyUnicode_AsUTF8(PyTuple_GET_ITEM(keyword_names, k));
    if (!name) throw py::error_already_set();
    int i = 0;
    while (i < count && std::strcmp(names[i], name) != 0) ++i;
    if (i == count) refuse("got an unexpected argument ", name);
    if (values_[i]) refuse("got two values for ", name);
    values_[i] = args[positional + k];
  }
  for (int i = 0; i < required; ++i)
    if (!values_[i]) refuse("misses the argument ", names[i]);
}

int Arguments::integer(int i, int otherwise) const {
  if (!values_[i]) return otherwise;
  const auto number = py::reinterpret_steal<py::object>(PyNumber_Index(values_[i]));
  if (!number) {
    PyErr_Clear();
    fail(Status::InvalidArgument, names_[i], " is a ", Py_TYPE(values_[i])->tp_name,
         ": expected a whole number");
  }
  int overflow = 0;
  const long value = PyLong_AsLongAndOverflow(number.ptr(), &overflow);
  if (overflow || value > INT32_MAX || value < INT32_MIN)
    fail(Status::InvalidArgument, names_[i], "=", std::string(py::str(number)), ": expected at most ",
         INT32_MAX);
  return static_cast<int>(value);
}

double Arguments::timeout(int i) const {
  if (!given(i)) return -1;
  const double value = PyBool_Check(values_[i]) ? NAN : PyFloat_AsDouble(values_[i]);
  if (PyErr_Occurred()) PyErr_Clear();
  if (!std::isfinite(value) || !(value > 0))
    fail(Status::InvalidArgument, names_[i], "=", std::string(py::repr(values_[i])),
         ": expected a positive number of seconds; every wait is bounded");
  return value;
}

ArrayArgument::ArrayArgument(const char* name, PyObject* value, bool written) {
  if (py::isinstance<py::array>(value))
    owner = py::reinterpret_borrow<py::object>(value);
  else
    owner = py::module_::import("xccl.array").attr("as_array")(name, py::handle(value));
  const auto array = py::reinterpret_borrow<py::array>(owner);
  constexpr uint64_t holds_objects = 1;
  if (array.dtype().flags() & holds_objects)
    fail(Status::InvalidArgument, name, ": dtype ", std::string(py::str(array.dtype())),
         " holds Python objects, which mean nothing to other ranks");
  if (!(array.flags() & py::array::c_style))
    fail(Status::InvalidArgument, name, " is not C-contiguous; pass np.ascontiguousarray(", name, ")");
  if (written && !array.writeable()) fail(Status::InvalidArgument, name, " is read-only");
  data = const_cast<void*>(array.data());
  bytes = static_cast<uint64_t>(array.nbytes());
}

std::shared_ptr<void> ArrayArgument::keep() const {
  const py::gil_scoped_acquire gil;
  PyObject* kept = owner.inc_ref().ptr();
  return std::shared_ptr<void>(kept, [](void* object) {
    const PyGILState_STATE state = PyGILState_Ensure();
    Py_DECREF(static_cast<PyObject*>(object));
    PyGILState_Release(state);
  });
}

namespace {

PyObject* send(PyObject* self, PyObject* const* args, Py_ssize_t count, PyObject* keywords) {
  return guarded([&]() -> PyObject* {
    static constexpr const char* names[] = {"array", "dst", "tag", "timeout"};
    const Arguments given("send", names, 4, 2, args, count, keywords);
    const ArrayArgument array("array", given[0], false);
    const int dst = given.integer(1, 0), tag = given.integer(2, 0);
    const double timeout = given.timeout(3);
    {
      const ShortCall call(array.bytes);
      p2p_of(self)->send(array.data, array.bytes, dst, tag, timeout, [&] { return array.keep(); });
    }
    Py_RETURN_NONE;
  });
}

PyObject* recv(PyObject* self, PyObject* const* args, Py_ssize_t count, PyObject* keywords) {
  return guarded([&] {
    static constexpr const char* names[] = {"array", "src", "tag", "timeout"};
    const Arguments given("recv", names, 4, 1, args, count, keywords);
    const ArrayArgument array("array", given[0], true);
    const int src = given.integer(1, any_source), tag = given.integer(2, any_tag);
    const double timeout = given.timeout(3);
    MessageInfo info;
    {
      const ShortCall call(array.bytes);
      info = p2p_of(self)->recv(array.data, array.bytes, src, tag, timeout);
    }
    return make_status(info);
  });
}

PyObject* isend(PyObject* self, PyObject* const* args, Py_ssize_t count, PyObject* keywords) {
  return guarded([&] {
    static constexpr const char* names[] = {"array", "dst", "tag"};
    const Arguments given("isend", names, 3, 2, args, count, keywords);
    const ArrayArgument array("array", given[0], false);
    const int dst = given.integer(1, 0), tag = given.integer(2, 0);
    const auto& p2p = p2p_of(self);
    auto kept = array.keep();
    std::shared_ptr<Request> request;
    {
      const ShortCall call(array.bytes);
      request = p2p->isend(array.data, array.bytes, dst, tag, std::move(kept));
    }
    return make_request(p2p, std::move(request));
  });
}

PyObject* irecv(PyObject* self, PyObject* const* args, Py_ssize_t count, PyObject* keywords) {
  return guarded([&] {
    static constexpr const char* names[] = {"array", "src", "tag"};
    const Arguments given("irecv", names, 3, 1, args, count, keywords);
    const ArrayArgument array("array", given[0], true);
    const int src = given.integer(1, any_source), tag = given.integer(2, any_tag);
    const auto& p2p = p2p_of(self);
    auto kept = array.keep();
    std::shared_ptr<Request> request;
    {
      const ShortCall call(array.bytes);
      request = p2p->irecv(array.data, array.bytes, src, tag, std::move(kept));
    }
    return make_request(p2p, std::move(request));
  });
}

PyObject* sendrecv(PyObject* self, PyObject* const* args, Py_ssize_t count, PyObject* keywords) {
  return guarded([&] {
    static constexpr const char* names[] = {"array", "dst", "into", "src", "send_tag", "recv_tag", "timeout"};
    const Arguments given("sendrecv", names, 7, 3, args, count, keywords);
    const ArrayArgument array("array", given[0], false), into("into", given[2], true);
    const int dst = given.integer(1, 0), src = given.integer(3, any_source);
    const int send_tag = given.integer(4, 0), recv_tag = given.integer(5, any_tag);
    const double timeout = given.timeout(6);
    const auto* first = static_cast<const std::byte*>(array.data);
    const auto* other = static_cast<const std::byte*>(into.data);
    if (array.bytes && into.bytes && first < other + into.bytes && other < first + array.bytes)
      fail(Status::InvalidArgument, "array and into share memory; pass two arrays");
    MessageInfo info;
    {
      const ShortCall call(array.bytes + into.bytes);
      info = p2p_of(self)->sendrecv(array.data, array.bytes, dst, send_tag, into.data, into.bytes, src,
                                    recv_tag, timeout, [&] { return array.keep(); });
    }
    return make_status(info);
  });
}

PyObject* probe(PyObject* self, PyObject* const* args, Py_ssize_t count, PyObject* keywords) {
  return guarded([&] {
    static constexpr const char* names[] = {"src", "tag", "timeout"};
    const Arguments given("probe", names, 3, 0, args, count, keywords);
    const int src = given.integer(0, any_source), tag = given.integer(1, any_tag);
    const double timeout = given.timeout(2);
    MessageInfo info;
    {
      const ShortCall call(0);
      info = p2p_of(self)->probe(src, tag, timeout);
    }
    return make_status(info);
  });
}

PyObject* iprobe(PyObject* self, PyObject* const* args, Py_ssize_t count, PyObject* keywords) {
  return guarded([&]() -> PyObject* {
    static constexpr const char* names[] = {"src", "tag"};
    const Arguments given("iprobe", names, 2, 0, args, count, keywords);
    const int src = given.integer(0, any_source), tag = given.integer(1, any_tag);
    std::optional<MessageInfo> info;
    {
      const ShortCall call(0);
      info = p2p_of(self)->iprobe(src, tag);
    }
    if (!info) Py_RETURN_NONE;
    return make_status(*info);
  });
}

// As what a view shows its message. Checked as a whole before a message is taken for it.
struct ViewFormat {
  py::dtype dtype = py::dtype::of<uint8_t>();
  std::optional<std::vector<py::ssize_t>> shape;  // none: one dimension, as long as the message
  ViewSize size;

  ViewFormat(PyObject* dtype_given, PyObject* shape_given) {
    if (!dtype_given && !shape_given) return;
    const auto or_none = [](PyObject* given) { return py::handle(given ? given : Py_None); };
    const py::tuple checked =
        py::module_::import("xccl.array").attr("view_format")(or_none(dtype_given), or_none(shape_given));
    dtype = checked[0].cast<py::dtype>();
    shape = checked[1].cast<std::optional<std::vector<py::ssize_t>>>();
    const auto bytes = checked[2].cast<uint64_t>();
    if (shape)
      size.exactly = bytes;
    else
      size.multiple_of = bytes;
  }
  std::vector<py::ssize_t> shape_of(uint64_t message_bytes) const {
    if (shape) return *shape;
    return {static_cast<py::ssize_t>(message_bytes / size.multiple_of)};
  }
};

PyObject* recv_view(PyObject* self, PyObject* const* args, Py_ssize_t count, PyObject* keywords) {
  return guarded([&] {
    static constexpr const char* names[] = {"src", "tag", "dtype", "shape", "timeout"};
    const Arguments given("recv_view", names, 5, 0, args, count, keywords);
    const int src = given.integer(0, any_source), tag = given.integer(1, any_tag);
    const ViewFormat format(given[2], given[3]);
    const double timeout = given.timeout(4);
    const auto& p2p = p2p_of(self);
    std::shared_ptr<View> view;
    {
      const ShortCall call(0);
      view = p2p->recv_view(src, tag, timeout, format.size);
    }
    std::vector<py::ssize_t> shape = format.shape_of(view->info.bytes);
    return make_view(p2p, std::move(view), format.dtype, std::move(shape));
  });
}

void drop(Messages& self) {
  auto* held = std::exchange(self.p2p, nullptr);
  if (!held) return;
  let_go(*held);
  delete held;
}

// Without the GIL: registering waits for a thread that is making progress on other communicators' messages, and that
// may be waiting for the GIL in order to let go of an array.
std::shared_ptr<PointToPoint> make_messages(std::shared_ptr<Communicator> comm) {
  const py::gil_scoped_release without_gil;
  return std::make_shared<PointToPoint>(std::move(comm));
}

// The rest of the life of the native object; called by xccl.Communicator.
int initialise(PyObject* self, PyObject* args, PyObject*) {
  PyObject* done = guarded([&]() -> PyObject* {
    PyObject* native = nullptr;
    if (!PyArg_ParseTuple(args, "O", &native)) throw py::error_already_set();
    auto& messages = *reinterpret_cast<Messages*>(self);
    drop(messages);
    auto made = make_messages(py::cast<std::shared_ptr<Communicator>>(py::handle(native)));
    messages.p2p = new std::shared_ptr<PointToPoint>(std::move(made));
    Py_RETURN_NONE;
  });
  Py_XDECREF(done);
  return done ? 0 : -1;
}

PyObject* close_messages(PyObject* self, PyObject*) {
  return guarded([&]() -> PyObject* {
    const Blocking blocking;
    p2p_of(self)->close();
    Py_RETURN_NONE;
  });
}

void deallocate(PyObject* self) {
  PyTypeObject* type = Py_TYPE(self);
  drop(*reinterpret_cast<Messages*>(self));
  type->tp_free(self);
  Py_DECREF(type);
}

template <class Function>
PyCFunction as_method(Function function) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

constexpr int fast = METH_FASTCALL | METH_KEYWORDS;

PyMethodDef methods[] = {
    {"send", as_method(send), fast,
     "send($self, array, dst, tag=0, timeout=None)\n--\n\n"
     "Sends an array to rank `dst`; returns when it may be changed again.\n\n"
     "Args:\n"
     "    array: any C-contiguous array, of any dtype without Python objects, from 0 bytes on.\n"
     "    dst: 0 to size - 1, also this rank itself.\n"
     "    tag: 0 to 2**31 - 1. Messages to the same rank with the same tag arrive in order.\n"
     "    timeout: seconds; the communicator's default if None.\n\n"
     "Up to XCCL_EAGER_LIMIT bytes are buffered and the call returns at once. Larger messages are announced, "
     "and\n"
     "the call waits until the receiver has come: an array of `comm.empty` is then read where it lies, "
     "another is\n"
     "copied in pieces by both sides at once. (Rendezvous and eager protocols as in MPI; XCCL, "
     "arXiv:2508.02520.)\n\n"
     "Raises InvalidArgument; Timeout (the message was not sent; call again); PeerLost, PeerFailed, Closed.\n"
     "But a Timeout in `phase` \"lent\" says that the message was sent: the receiver has borrowed it, and "
     "until it "
     "gives it\n"
     "back the array must not be changed. With isend() one can wait for that again."},
    {"recv", as_method(recv), fast,
     "recv($self, array, src=ANY_SOURCE, tag=ANY_TAG, timeout=None)\n--\n\n"
     "Receives a message into a writable C-contiguous array and returns its Status (src, tag, nbytes).\n\n"
     "A shorter message leaves the rest of the array as it is. With wildcards, sources are served in "
     "turn.\n\n"
     "Raises Truncated, naming both sizes, if the message does not fit (it stays for a larger receive);\n"
     "Timeout (nothing was taken; call again); InvalidArgument, PeerLost, PeerFailed, Closed."},
    {"isend", as_method(isend), fast,
     "isend($self, array, dst, tag=0)\n--\n\n"
     "Begins to send; returns a Request. The array is kept alive and must not be changed until it has "
     "finished.\n\n"
     "Raises InvalidArgument, OutOfMemory. Messages go on in any later call of this rank on this job."},
    {"irecv", as_method(irecv), fast,
     "irecv($self, array, src=ANY_SOURCE, tag=ANY_TAG)\n--\n\n"
     "Begins to receive; returns a Request. Receives match messages in the order in which they were posted."},
    {"sendrecv", as_method(sendrecv), fast,
     "sendrecv($self, array, dst, into, src=ANY_SOURCE, send_tag=0, recv_tag=ANY_TAG, timeout=None)\n--\n\n"
     "Sends `array` and receives into `into` at the same time, so that two ranks may call it for each "
     "other.\n"
     "Returns the Status of the received message.\n\n"
     "Errors as for send and recv. The `op` of a Timeout tells what has been done: \"send\": the message has "
     "not been\n"
     "sent; \"sendrecv\": it has, so only receive again. Nothing is ever taken."},
    {"probe", as_method(probe), fast,
     "probe($self, src=ANY_SOURCE, tag=ANY_TAG, timeout=None)\n--\n\n"
     "Waits for a message and returns its Status, without taking it: the next such recv gets it."},
    {"iprobe", as_method(iprobe), fast,
     "iprobe($self, src=ANY_SOURCE, tag=ANY_TAG)\n--\n\n"
     "The Status of the message that such a recv would get now, or None.\n\n"
     "Raises PeerLost, PeerFailed; Closed if there is none and `src`, a rank, has closed."},
    {"recv_view", as_method(recv_view), fast,
     "recv_view($self, src=ANY_SOURCE, tag=ANY_TAG, dtype='uint8', shape=None, timeout=None)\n--\n\n"
     "Borrows a message where it lies, without copying it.\n\n"
     "    with comm.recv_view(src=0, tag=0, dtype='bfloat16', shape=(128, 7168)) as v:\n"
     "        use(v)                        # a read-only array\n\n"
     "The sender's array stays in use until the block ends, or this communicator is closed; then the array "
     "may show\n"
     "something else and must not be used. A message of an array of `comm.empty`, or a buffered one, is "
     "borrowed; any\n"
     "other is received into memory of the view.\n"
     "The view has src, tag, nbytes and release().\n\n"
     "Raises InvalidArgument if the message is not of that dtype and shape (it stays); else as recv."},
    {"_close_messages", close_messages, METH_NOARGS, "Waits until what was sent needs this rank no more."},
    {nullptr, nullptr, 0, nullptr},
};

PyType_Slot slots[] = {
    {Py_tp_methods, methods},
    {Py_tp_init, reinterpret_cast<void*>(initialise)},
    {Py_tp_new, reinterpret_cast<void*>(PyType_GenericNew)},
    {Py_tp_dealloc, reinterpret_cast<void*>(deallocate)},
    {Py_tp_doc, const_cast<char*>("Messages between the ranks of a communicator.")},
    {0, nullptr},
};

PyType_Spec spec = {"xccl._core.Messages", sizeof(Messages), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
                    slots};

}  // namespace

void bind_hot(py::module_& m) {
  add_hot_objects(m);
  m.add_object("Messages", py::reinterpret_steal<py::object>(PyType_FromSpec(&spec)));
  m.attr("ANY_SOURCE") = any_source;
  m.attr("ANY_TAG") = any_tag;
}

}  // namespace xccl::python
